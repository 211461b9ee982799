"""Laws of what is done in few calls where nothing special is asked for: it is what is done in general."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsm_train import (
    Callback,
    Flag,
    Operation,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    iterate,
    on,
    run,
    start,
)
from fsm_train.callbacks import accumulate, clip_grad_norm, freeze, micro_batches, mixed_precision, mixup, schedule
from fsm_train.data.batches import pair
from fsm_train.data.counting import count
from fsm_train.schedules import linear
from fsm_train.supervised import steps, validation, whole_step
from fsm_train.supervised.means import Mean
from property_tests.test_runs import last
from tests.diabetes_training import batches, net, sgd
from tests.models import same_weights

# ------------------------------------------------------------------------------------------ a batch

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
plain = shapes.map(torch.zeros)
parts = st.one_of(
    *(plain, plain, st.none(), st.lists(plain, max_size=2), st.dictionaries(st.sampled_from("ab"), plain, max_size=2)),
    plain.map(nn.Parameter),
)
any_batch = st.one_of(st.tuples(parts, parts), st.lists(parts, max_size=3), st.dictionaries(st.text(), parts), parts)


def supervised(kind: type[Supervised] = Supervised, **settings: Any) -> Any:
    model = net()
    return kind(model, sgd(model), nn.MSELoss(), batches(8, 8, 5, 6), **settings)


@given(any_batch)
def test_batch_is_a_pair_and_counts_what_it_counts(batch: Any) -> None:
    """Also where two tensors disagree, where one has no dimension, and where there are not two: the same sentence."""

    def fetched() -> tuple[Any, Any, float]:
        work = supervised()
        work._batches = iter([batch])
        size = work.fetch()
        assert size == work.batch_size
        return work.inputs, work.target, size

    def in_general() -> tuple[Any, Any, float]:
        inputs, target = pair(batch)
        return inputs, target, count(inputs, target)

    outcomes: list[Any] = []
    for of in (fetched, in_general):
        try:
            inputs, target, size = of()
            outcomes.append((id(inputs), id(target), size))
        except WorkloadError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


# ------------------------------------------------------------------------------------- what is measured

types = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])
numbers = st.lists(st.tuples(st.floats(-4, 4, width=16), types, st.integers(1, 5)), max_size=9)


@given(numbers, st.integers(0, 9), st.integers(1, 4))
def test_mean_keeps_the_type_of_each_number(given_numbers: list[Any], saved_after: int, block: int) -> None:
    """Nothing is rounded to a common type, in blocks of whatever size, saved and loaded in between or not."""
    mean = Mean()
    mean.BLOCK = block  # type: ignore[misc]
    for number, (value, dtype, weight) in enumerate(given_numbers):
        if number == saved_after:
            other = Mean()
            other.load_state(mean.state())
            mean = other
        mean.add(torch.tensor(value, dtype=dtype) / 3, weight)

    expected = [(torch.tensor(value, dtype=dtype) / 3).item() for value, dtype, _ in given_numbers]
    assert mean.values() == expected
    assert mean.state()[2] == [weight for _, _, weight in given_numbers]


# ----------------------------------------------------------------------------------------- whole steps


class WholeSteps(Supervised):
    """Takes whole steps, but not several in a row."""

    def laps(self, operations: tuple[Operation, ...]) -> None:
        return None


class InGeneral(WholeSteps):
    """Does the operations of a step one by one, each as if something special was asked for."""

    def _calls_as_given(self) -> bool:
        return False


class Flexible(nn.Module):
    """Takes its inputs by position or by keyword. It draws numbers, and has statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net().insert(2, nn.Dropout(0.2))

    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        return self.layers(x if more is None else x + more)


FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "a tuple": lambda x, y: (x, y),
    "a list": lambda x, y: [x, y],
    "two inputs": lambda x, y: ((x, 0.1 * x), y),
    "inputs by name": lambda x, y: ({"x": x}, y),
    "a parameter": lambda x, y: (nn.Parameter(x), y),
    "nothing": lambda x, y: (x[:0], y[:0]),
    "of another size": lambda x, y: (x, y[1:]),
}
LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "plain": nn.functional.mse_loss,
    "in parts": lambda o, t: {"loss": nn.functional.mse_loss(o, t), "far": (o - t).abs().max()},
    "a vector": lambda o, t: nn.functional.mse_loss(o, t, reduction="none"),
    "a number": lambda o, t: 0.5,
    "of no parameter": lambda o, t: 2 * torch.ones((), requires_grad=True),
    "detached": lambda o, t: nn.functional.mse_loss(o, t).detach(),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "a metric": {"metrics": {"error": lambda output, target: (output - target).abs().mean()}},
    "own forward": {"forward": lambda model, inputs: 2 * model(inputs)},
    "own counts": {"samples": lambda inputs, target: 0.5 * len(target)},
    "own split": {"split": lambda batch: (batch[0], batch[1] + 1)},
    "own backward of parts": {"backward": lambda parts, parameters: (parts["loss"] + parts["far"]).backward()},
    "own backward": {"backward": lambda loss, parameters: (2 * loss).backward()},
    "a closure": {"closure": True},
    "numbers": {"numbers": {"weight": 1.0}},
}
CALLBACKS: dict[str, Callable[[], Callback[Any]]] = {
    "bf16": lambda: mixed_precision("bfloat16"),
    "pieces": lambda: micro_batches(3),
    "frozen": lambda: freeze("layers.0.*", until_epoch=1),
    "rate": lambda: schedule(lr=linear(1.0, 0.5, 3), by="epoch"),
    "accumulated": lambda: accumulate(2),
    "clipped": lambda: clip_grad_norm(0.5),
    "mixed": lambda: mixup(0.4),
    "left out": lambda: every_third_left_out,
}


@on(Phase.LOSS_END, name="left out")
def every_third_left_out(state: State) -> Transition:
    return Transition(flags=Flag.SKIP_BATCH if state.batch % 3 == 2 else Flag.NONE)


BREAKS = ("data", "model", "loss", "backward", "step", "zero_grad", "metric", "interrupt")


@attrs.frozen
class World:
    """The batches by their forms, the losses of each step, what else is asked for, and what breaks in which batch."""

    forms: tuple[str, ...]
    losses: tuple[str, ...]
    settings: str
    callbacks: tuple[str, ...]
    breaks: tuple[str, int]
    max_steps: int | None

    def trained(self, kind: type[Supervised]) -> tuple[Any, ...]:
        """All that can be seen of this training from outside."""
        what, when = self.breaks
        counts = dict.fromkeys((*BREAKS, "arguments"), 0)

        def reach(place: str) -> None:
            counts[place] += 1
            if place == what and counts[place] == when:
                if what == "interrupt":
                    work.interrupt = "SIGTERM"
                else:
                    raise OSError(place)

        class Data(list[Any]):
            def __iter__(self) -> Iterator[Any]:
                for batch in list.__iter__(self):
                    reach("data")
                    reach("interrupt")
                    yield batch

        def loss_fn(output: torch.Tensor, target: torch.Tensor) -> Any:
            reach("loss")
            output = output.view_as(output)
            if output.requires_grad:
                output.register_hook(lambda gradient: reach("backward"))
            return LOSSES[self.losses[counts["loss"] % len(self.losses)]](output, target)

        def breaking(function: Callable[..., Any], place: str) -> Callable[..., Any]:
            def call(*args: Any, **given: Any) -> Any:
                reach(place)
                counts["arguments"] += len(args) + len(given)
                return function(*args, **given)

            return call

        model = Flexible()
        model.layers[0].register_forward_pre_hook(lambda module, inputs: reach("model"))
        optimizer: Any = sgd(model)
        data = [FORMS[self.forms[i % len(self.forms)]](x, y) for i, (x, y) in enumerate(batches(8, 8, 5, 6, 8))]
        settings = dict(SETTINGS[self.settings])
        if what == "metric":
            settings["metrics"] = {"broken": breaking(lambda output, target: 1.0, "metric")}
        work: Any = kind(model, optimizer, loss_fn, Data(data), **settings)
        optimizer.step = breaking(optimizer.step, "step")
        optimizer.zero_grad = breaking(optimizer.zero_grad, "zero_grad")
        ends: list[Any] = []

        @on(Phase.TEARDOWN)
        def torn_down(state: State) -> None:
            if (failure := state.failure) is not None:
                ends.append((failure.phase, failure.doing, failure.deciding, failure.state, failure.in_a_batch))

        try:
            final = last(
                iterate(
                    start(work, epochs=2, seed=1, max_steps=self.max_steps),
                    [torn_down, *(CALLBACKS[name]() for name in self.callbacks)],
                )
            )
            ends.append(final)
        except Exception as error:
            ends.append((type(error), str(error), getattr(error, "__notes__", ())))
        gradients = [parameter.grad for parameter in model.parameters()]
        return ends, model, gradients, torch.random.get_rng_state(), counts


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    (ends, model, gradients, generator, counts), (ends_2, model_2, gradients_2, generator_2, counts_2) = one, other
    return (
        ends == ends_2
        and counts == counts_2
        and torch.equal(generator, generator_2)
        and same_weights(model, model_2)
        and all(
            a is b is None or (a is not None and b is not None and torch.equal(a, b))
            for a, b in zip(gradients, gradients_2, strict=True)
        )
    )


def mostly(usual: str, others: Sequence[str]) -> st.SearchStrategy[str]:
    return st.sampled_from([usual] * len(others) + [*others])


worlds = st.builds(
    World,
    forms=st.lists(mostly("a tuple", [*FORMS]), min_size=1, max_size=3).map(tuple),
    losses=st.lists(mostly("plain", [*LOSSES]), min_size=1, max_size=3).map(tuple),
    settings=mostly("none", [*SETTINGS]),
    callbacks=st.lists(st.sampled_from([*CALLBACKS]), max_size=2, unique=True).map(tuple),
    breaks=st.tuples(st.sampled_from([*BREAKS]), st.integers(0, 9)),
    max_steps=st.sampled_from([None, None, 1, 3, 6]),
)


def check(world: World) -> None:
    """Steps in a row, whole steps, and operations one by one do the same."""
    in_a_row = world.trained(Supervised)
    assert same(in_a_row, world.trained(WholeSteps))
    if world.breaks[0] != "metric":  # which a whole step measures at its end
        assert same(in_a_row, world.trained(InGeneral))


@given(worlds)
def test_steps_in_few_calls_are_operations_one_by_one(world: World) -> None:
    """The same weights, random numbers, states, errors and notes, whatever is asked for and wherever it breaks."""
    check(world)


@pytest.mark.parametrize("name", whole_step.CALLED)
@pytest.mark.parametrize("watched", [False, True])
def test_what_a_subclass_overrides_is_called_once_a_batch(name: str, watched: bool) -> None:
    """In laps as where somebody looks at each operation."""
    calls = []

    def own(self: Any, *args: Any) -> Any:
        calls.append(name)
        return getattr(Supervised, name)(self, *args)

    look = on(Phase.LOSS_BEGIN, Phase.LOSS_END, Phase.STEP_BEGIN, name="look")(lambda state: None)
    run(start(supervised(type("Own", (Supervised,), {name: own})), epochs=2), [look] if watched else [])

    assert calls == [name] * 8


SOUND = World(("a tuple",), ("plain",), "none", (), ("data", 0), None)
BROKEN_WHOLE_STEPS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no guard of a precision": ("work.precision is not None", "False", {"callbacks": ("bf16",)}),
    "no guard of pieces": ("work.micro_batches is not None", "False", {"callbacks": ("pieces",)}),
    "no guard of a closure": ("or work.gives_closure", "", {"settings": "a closure"}),
    "no guard of a backward": ("work.custom_backward is not None", "False", {"settings": "own backward"}),
    "no own forward": ("and work.custom_forward is None", "", {"settings": "own forward"}),
    "a step too many": ("batches < most", "batches <= most", {"max_steps": 3}),
    "no end by a signal": ("if work.interrupt is not None:", "if False:", {"breaks": ("interrupt", 3)}),
    "no batch that fails": ("size, stepping = fetched, True", "size = fetched", {"breaks": ("model", 3)}),
    "no samples": ("samples + size, False", "samples, False", {}),
    "a mapping for a loss": ("if type(loss) is not torch.Tensor:\n", "if False:\n", {"losses": ("in parts",)}),
    "no parts": ("or work.loss_parts:", ":", {"losses": ("plain", "in parts")}),
    "the first loss unchecked": ("if not work.loss_checked:", "if False:", {"losses": ("of no parameter",)}),
    "no metrics": ("work.train_meters.metrics or", "", {"settings": "a metric"}),
    "the wrong operation": ("work.doing = STEP", "pass", {"breaks": ("step", 3)}),
    "the wrong operation at the end": ("work.doing, work.output = ZERO, output", "pass", {"breaks": ("zero_grad", 4)}),
    "zeroed first": ("work.optimizer.step()", "work.optimizer.zero_grad()", {}),
}
WATCHED = ("accumulated",)
BROKEN_FORWARD: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no guard of a precision": ("and self.precision is None", "", {"callbacks": ("bf16", "left out")}),
    "no guard of pieces": ("and self.micro_batches is None", "", {"callbacks": ("pieces", "left out")}),
    "no own forward": ("and self.custom_forward is None", "", {"settings": "own forward", "callbacks": WATCHED}),
    "inputs by position": (
        *("and type(inputs) is torch.Tensor", ""),
        {"forms": ("two inputs",), "callbacks": WATCHED},
    ),
}
BROKEN_LOSS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no guard of mixed batches": ("self.mix is None", "True", {"callbacks": ("mixed", "left out")}),
    "no guard of a backward": (
        *("self.custom_backward is None", "True"),
        {"settings": "own backward of parts", "losses": ("in parts",), "callbacks": ("left out",)},
    ),
    "the first loss unchecked": (
        *("and self.loss_checked", ""),
        {"losses": ("of no parameter",), "callbacks": WATCHED},
    ),
}
BROKEN_BACKWARD: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no metrics": ("not meters.metrics", "True", {"settings": "a metric", "callbacks": WATCHED}),
    "no parts": ("not self.loss_parts", "True", {"losses": ("plain", "in parts"), "callbacks": WATCHED}),
}
BROKEN: dict[str, tuple[Any, str, tuple[str, str, dict[str, Any]]]] = {
    f"{function}: {what}": (owner, function, each)
    for owner, function, table in (
        (whole_step, "whole_steps", BROKEN_WHOLE_STEPS),
        (validation.Validating, "forward", BROKEN_FORWARD),
        (steps.Stepping, "loss", BROKEN_LOSS),
        (steps.Stepping, "backward", BROKEN_BACKWARD),
    )
    for what, each in table.items()
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_steps_are_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that the law holds for shows what is wrong with them."""
    owner, function, (old, new, asked_for) = BROKEN[broken]
    world = attrs.evolve(SOUND, **asked_for)
    check(world)
    source = textwrap.dedent(inspect.getsource(getattr(owner, function)))
    assert source.count(old) == 1
    names = dict(vars(sys.modules[getattr(owner, function).__module__]))
    exec(f"from __future__ import annotations\n{source.replace(old, new)}", names)
    monkeypatch.setattr(owner, function, names[function])
    if owner is whole_step:
        monkeypatch.setattr(steps.Stepping, "_whole_step", names[function])
    with pytest.raises(AssertionError):
        check(world)
