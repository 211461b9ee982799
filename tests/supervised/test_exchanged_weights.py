"""`with weights(work, name):` in commands, in loops over `iterate` and in forward, beside loops by hand."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from fsm_train import (
    Callback,
    Command,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    carries_out,
    evaluate,
    extend,
    iterate,
    on,
    restore,
    run,
    start,
    weights,
)
from fsm_train.callbacks import checkpoint, ema, mixed_precision, swa, validate_every
from fsm_train.supervised import averages
from fsm_train.worlds.scripted import Scripted
from tests.diabetes_training import batches, net, sgd, weights_of, workload
from tests.models import digits, network, same_weights, shuffled

DATA, VALID = batches(8, 8, 8, 6), batches(5, 5, skip=30)


def whole(work: Supervised) -> list[torch.Tensor]:
    """Copies of everything that a block exchanges."""
    return [value.clone() for module in work.modules.values() for value in (*module.parameters(), *module.buffers())]


def equal(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(ones) == len(others) and all(one.equal(other) for one, other in zip(ones, others, strict=True))


def after_training(*callbacks: Callback[Any], epochs: int = 2) -> Supervised:
    """A trained workload, with its own weights; by default beside two averages."""
    work = workload(DATA, model=net(), valid=VALID)
    both = [ema(0.8, validate=False), ema(0.99, validate=False, name="slow")]
    run(start(work, epochs=epochs), callbacks or both)
    return work


# ------------------------------------------------------------------------- where it is used


def test_in_a_loop_over_iterate() -> None:
    """After each batch the model has torch's average inside, and the training is that of a loop without blocks."""
    model = net()
    optimizer = sgd(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))  # type: ignore[no-untyped-call]
    work = workload(DATA, model=net(), valid=VALID)
    by_hand = iter(DATA * 2)
    for state in iterate(start(work, epochs=2), [ema(0.8, validate=False)], at=[Phase.BATCH_END]):
        if state.phase is Phase.BATCH_END:
            inputs, target = next(by_hand)
            nn.functional.mse_loss(model(inputs), target).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            with weights(work, "ema") as begun:
                work.model.eval()
                assert same_weights(work.model, average.module)
                assert equal([work.model(inputs)], [average.module.eval()(inputs)])
            assert begun
            assert same_weights(work.model, model)

    assert next(by_hand, None) is None


@attrs.frozen
class Sample(Command):
    """Draw samples with the average of this name."""

    average: str


def test_sampling_with_the_average() -> None:
    """A command each 5 steps: what it draws is of the average, and the training is the same without it."""
    samples: list[torch.Tensor] = []

    @carries_out(Sample)
    def sample(work: Supervised, command: Sample) -> None:
        with work.undisturbed(), weights(work, command.average):
            work.model.eval()
            samples.append(work.model(torch.randn(3, 64)))

    @on(Phase.STEP_END, commands={Sample})
    def sample_sometimes(state: State) -> Transition | None:
        return Transition(commands=(Sample("ema"),)) if state.step % 5 == 0 else None

    def trained(*callbacks: Callback[Any]) -> tuple[Supervised, State, torch.Tensor]:
        model = network()
        work = Supervised(model, sgd(model), nn.CrossEntropyLoss(), shuffled(digits(160)))
        return work, run(start(work, epochs=3, seed=0), [ema(0.8, warmup=True), *callbacks]), torch.get_rng_state()

    (with_samples, *seen), (without, *others) = trained(sample_sometimes), trained()

    assert len(samples) == 3
    assert same_weights(with_samples.model, without.model)
    assert all(
        one.equal(other) if isinstance(one, torch.Tensor) else one.history == other.history
        for one, other in zip(seen, others, strict=True)
    )


def consistency(output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    student, teacher = output
    return nn.functional.cross_entropy(student, target) + (student.softmax(1) - teacher.softmax(1)).square().mean()


class MeanTeacher:
    """A training whose loss compares the model with its average: Tarvainen and Valpola, "Mean teachers" (2017)."""

    def __init__(self, *, teacher_first: bool = False) -> None:
        self.teacher_first = teacher_first
        model = network()
        loader: DataLoader[Any] = shuffled(digits(160))
        self.work = Supervised(model, sgd(model), consistency, loader, loader, forward=self.forward)

    def forward(self, model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.teacher_first:
            teacher = self.teacher(model, inputs)
            return model(inputs), teacher
        return model(inputs), self.teacher(model, inputs)

    def teacher(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        with weights(self.work, "ema"):
            output: torch.Tensor = model(inputs)
            return output


def by_hand(*, teacher_first: bool, dtype: torch.dtype | None) -> nn.Module:
    """The same in a loop by hand, with a teacher that is another module."""
    model = network()
    optimizer, loader = sgd(model), shuffled(digits(160))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    for inputs, target in (batch for _ in range(3) for batch in loader):
        average.module.load_state_dict(dict(average.module.named_parameters()), strict=False)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            outputs: list[torch.Tensor] = []
            for is_teacher in (teacher_first, not teacher_first):
                with torch.set_grad_enabled(not is_teacher):
                    outputs.append((average.module if is_teacher else model)(inputs))
            student, teacher = outputs[::-1] if teacher_first else outputs
            loss = consistency((student, teacher), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    return model


@pytest.mark.parametrize("teacher_first", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_mean_teacher_is_that_of_a_loop_by_hand(dtype: torch.dtype | None, teacher_first: bool) -> None:
    """In forward, before the student or between it and its backward, with dropout and batch norm, also in autocast."""
    teaching = MeanTeacher(teacher_first=teacher_first)
    teaching.work.valid = None
    precision = [] if dtype is None else [mixed_precision("bfloat16")]
    run(start(teaching.work, epochs=3, seed=0), [ema(0.8, validate=False), *precision])

    assert same_weights(teaching.work.model, by_hand(teacher_first=teacher_first, dtype=dtype))


def test_what_autocast_has_cast_is_of_the_weights_at_hand() -> None:
    """It keeps casts of the weights as long as gradients are on: they are those of before, inside, and after it."""
    assert outputs_in_autocast() == [True, True]


def outputs_in_autocast(bug: AbstractContextManager[Any] | None = None) -> list[bool]:
    """Whether the outputs inside of a block and after it, in one autocast context, are those without that context."""
    work = after_training()
    work.model.eval()
    inputs = DATA[0][0]

    def output() -> torch.Tensor:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            found: torch.Tensor = work.model(inputs)
            return found.detach()

    own = output()
    with weights(work, "ema"):
        averaged = output()
    with bug or contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16):
        output()
        with weights(work, "ema"):
            inside = output()
        after = output()
    torch.clear_autocast_cache()

    assert not own.equal(averaged)
    return [inside.equal(averaged), after.equal(own)]


def test_a_teacher_in_the_loss_is_that_of_a_loop_by_hand() -> None:
    """The loss asks the average for the inputs at hand, after the forward pass of the model."""

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with weights(work, "ema"):
            teacher = work.model(work.inputs)
        return consistency((output, teacher), target)

    model = network()
    work = Supervised(model, sgd(model), loss_fn, shuffled(digits(160)))
    run(start(work, epochs=3, seed=0), [ema(0.8, validate=False)])

    assert same_weights(model, by_hand(teacher_first=False, dtype=None))


def test_a_cast_that_is_kept_is_noticed() -> None:
    """Were what autocast keeps not cleared, the average of the weights would have no effect."""
    assert outputs_in_autocast(mock.patch.object(torch, "clear_autocast_cache")) == [False, True]


def test_mean_teacher_is_resumed(tmp_path: Path) -> None:
    """Saved within an epoch and validated with the average, which is its own teacher then: bit for bit."""
    callbacks = [ema(0.8), validate_every(steps=2)]
    once, saved, again = MeanTeacher(), MeanTeacher(), MeanTeacher()
    expected = run(start(once.work, epochs=3, seed=0), callbacks)
    run(start(saved.work, epochs=3, seed=0), [*callbacks, checkpoint(tmp_path, every_steps=7, last=9)])
    found = run(restore(sorted(tmp_path.glob("step-*"))[0], again.work), callbacks)

    assert found.history == expected.history
    assert same_weights(again.work.model, once.work.model)


def test_in_a_validation_that_has_an_average() -> None:
    """The block changes nothing where the model has this average; another is there inside, and gone after it."""
    work = workload(DATA, model=net(), valid=VALID)
    seen: list[tuple[list[torch.Tensor], ...]] = []
    kept = [ema(0.8), ema(0.99, validate=False, name="slow")]
    for state in iterate(start(work, epochs=1), kept, at=[Phase.VALID_BATCH_END]):
        if state.phase is Phase.VALID_BATCH_END:
            before = whole(work)
            with weights(work, "ema"):
                same = whole(work)
            with weights(work, "slow"):
                other = whole(work)
            seen.append((before, same, other, whole(work)))

    assert len(seen) == 2
    for before, same, other, after in seen:
        assert equal(before, same)
        assert equal(before, after)
        assert not equal(before, other)


# --------------------------------------------------------------------------- what the block leaves


def test_nested_and_repeated() -> None:
    """Each block gives back what there was before it; what `weights` returns can be used again, also inside itself."""
    work = after_training()
    fast, slow = weights(work, "ema"), weights(work, "slow")
    own = whole(work)

    def inside(block: AbstractContextManager[bool]) -> list[torch.Tensor]:
        with block:
            return whole(work)

    averaged, slower = inside(fast), inside(slow)
    with fast:
        assert equal(inside(slow), slower)
        assert equal(whole(work), averaged)
        assert equal(inside(fast), averaged)
        assert equal(whole(work), averaged)

    assert not any(equal(*pair) for pair in itertools.combinations([own, averaged, slower], 2))
    assert equal(whole(work), own)


def test_a_block_that_raises_gives_the_own_weights_back() -> None:
    """The error is the one that was raised."""
    work = after_training()
    own, modes = whole(work), [part.training for part in work.model.modules()]

    def fail() -> None:
        work.model.eval()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), weights(work, "ema"), weights(work, "slow"):
        fail()

    assert equal(whole(work), own)
    assert [part.training for part in work.model.modules()] == modes
    assert torch.is_grad_enabled()


def test_buffers_and_modes_are_as_before() -> None:
    """Also when the model runs in train mode inside, which changes the statistics of batch norm, and before a step."""
    for work in (after_training(), after_training(ema(0.8, start=100))):
        own = whole(work)
        with weights(work, "ema") as begun:
            work.model.eval().train()(torch.ones(4, 10))
            work.model.eval()
        assert begun is (len(work.carried_over.averages) == 2)
        assert equal(whole(work), own)
        assert all(part.training for part in work.model.modules())


class Remade(nn.Module):
    """Forward makes its running mean anew in train mode; two layers share their table, and one buffer is None."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(10, 10), nn.Linear(10, 1)
        self.register_buffer("mean", torch.ones(10))
        self.register_buffer("nothing", None)
        table = torch.ones(10)
        self.linear.register_buffer("table", table)
        self.other.register_buffer("table", table)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(inputs * self.linear.get_buffer("table")) * self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
            self.linear.get_buffer("table").mul_(1.001)
        output: torch.Tensor = self.other(hidden * self.mean * self.other.get_buffer("table"))
        return output


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_a_graph_of_before_goes_backward_after_the_block(buffers: Any) -> None:
    """With buffers that forward makes anew inside, and such as two layers share: the gradients are those without."""
    torch.manual_seed(0)
    model = Remade()
    work = Supervised(model, sgd(model), nn.MSELoss(), DATA)
    run(start(work, epochs=1), [ema(0.8, buffers=buffers, validate=False)])
    model.eval()
    with weights(work, "ema"):
        averaged = whole(work)
    assert not equal(averaged, whole(work))
    gradients = []
    for blocks in (0, 1, 2):
        model.zero_grad()
        output = model(DATA[0][0])
        for _ in range(blocks):
            with weights(work, "ema"):
                model.train()(DATA[1][0])
        output.mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])

    assert len(gradients[0]) == 4
    assert equal(gradients[0], gradients[1])
    assert equal(gradients[0], gradients[2])


def test_there_is_no_gradient_inside() -> None:
    """What is computed inside has none to give."""
    work = after_training()
    with weights(work, "ema"):
        output = work.model(DATA[0][0])
    with pytest.raises(RuntimeError, match="does not require grad"):
        output.mean().backward()


@pytest.mark.parametrize("name", ["ema", "slow"])
def test_weights_that_are_changed_inside_are_an_error(name: str) -> None:
    """They would be lost without a word."""
    work = after_training()
    own = whole(work)
    sentence = f"weights were changed while the model had the average '{name}'"
    with pytest.raises(WorkloadError, match=sentence), weights(work, name):
        work.model.load_state_dict(net().state_dict())

    assert equal(whole(work), own)


def test_a_training_inside_is_refused() -> None:
    """Its loss has no gradient; the weights are those of before."""
    work = after_training()
    own = whole(work)
    with pytest.raises(WorkloadError, match="the loss has no gradient"), weights(work, "ema"):
        run(start(work, epochs=1), [ema(0.8, validate=False)])

    assert equal(whole(work), own)


def test_an_evaluation_inside_is_that_of_the_average() -> None:
    """As a validation of the training is."""
    validated = run(start(workload(DATA, model=net(), valid=VALID), epochs=2), [ema(0.8)]).metrics["valid_loss"]
    work = after_training()
    with weights(work, "ema"):
        inside = evaluate(work)["valid_loss"]

    assert inside == validated != evaluate(work)["valid_loss"]


# --------------------------------------------------------------------------- before and after a run


def test_before_its_first_update_the_model_has_its_own() -> None:
    """As validations have then; and the block is told so."""
    work = after_training(ema(0.8, start=9))
    own = weights_of(work.model)
    with weights(work, "ema") as begun:
        inside = weights_of(work.model)

    assert begun is False
    assert inside.equal(own)


@pytest.mark.parametrize("average", [ema(0.8), swa(0)])
def test_after_the_end_the_model_has_it_already(average: Any) -> None:
    """With the statistics of batch norm of the end; a training that is extended goes on with its own weights."""
    once = after_training(average, epochs=3)
    work = workload(DATA, model=net(), valid=VALID)
    final = run(start(work, epochs=2), [average])
    ended = whole(work)
    with weights(work, average.name):
        inside = whole(work)
    after = whole(work)
    run(extend(final, epochs=1), [average])

    assert equal(ended, inside)
    assert equal(ended, after)
    assert same_weights(work.model, once.model)


def test_of_a_checkpoint_before_it_is_resumed(tmp_path: Path) -> None:
    """All averages are there at once, and the training goes on as if they had not been looked at."""
    kept = [ema(0.8), ema(0.99, buffers="average", validate=False, name="slow")]
    once = workload(DATA, model=net(), valid=VALID)
    expected = run(start(once, epochs=3), [*kept, checkpoint(tmp_path, every_steps=6, last=9)])
    work, inside = workload(DATA, model=net(), valid=VALID), {}
    state = restore(sorted(tmp_path.glob("step-*"))[0], work)
    for name in ("ema", "slow"):
        with weights(work, name):
            inside[name] = whole(work)
    final = run(state, kept)

    assert not equal(inside["ema"], inside["slow"])
    assert final.history == expected.history
    assert same_weights(work.model, once.model)


def test_a_loss_with_parameters_has_its_average_too() -> None:
    """Model and loss are exchanged together."""
    loss = nn.PReLU()
    model = net()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.05)
    work = Supervised(model, optimizer, _Bent(loss), DATA)
    run(start(work, epochs=2), [ema(0.9, validate=False)])
    own = loss.weight.clone()
    with weights(work, "ema"):
        inside = loss.weight.clone()

    assert inside.equal(next(v for n, v in work.carried_over.averages["ema"].parameters.items() if n[:4] == "loss"))
    assert loss.weight.equal(own)
    assert not inside.equal(own)


class _Bent(nn.Module):
    def __init__(self, bend: nn.Module) -> None:
        super().__init__()
        self.bend = bend

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        bent: torch.Tensor = self.bend(output - target)
        return bent.square().mean()


# ------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("callbacks", "name", "sentence"),
    [
        ([], "ema", r"'ema'\): there is no average of this name, there are none. A run keeps one with .* name='ema'\)"),
        ([ema(0.8)], "emma", r"there is 'ema'. Is 'ema' meant\?"),
        ([ema(0.8), ema(0.9, validate=False, name="slow")], "x", r"there are 'ema', 'slow'. A run keeps one with"),
    ],
)
def test_an_unknown_name_is_refused(callbacks: list[Any], name: str, sentence: str) -> None:
    """With those that there are, and the likely one; nothing is exchanged."""
    work = workload(DATA, model=net())
    run(start(work, epochs=1), callbacks)
    own = whole(work)
    block = weights(work, name)
    with pytest.raises(WorkloadError, match=sentence), block:
        raise AssertionError("the block is not entered")

    assert equal(whole(work), own)


def test_what_is_no_workload_with_weights_is_refused() -> None:
    """At the call, with what to write."""
    final = run(start(workload(DATA), epochs=1), [ema(0.8)])
    with pytest.raises(TypeError, match=r"a state has its workload with it .* weights\(state.workload, 'ema'\)"):
        weights(final, "ema")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weights takes a workload, but was given"):
        weights(net(), "ema")  # type: ignore[arg-type]
    with pytest.raises(WorkloadError, match="a Scripted has no weights"):
        weights(Scripted(), "ema")  # type: ignore[arg-type]


def test_a_model_that_changed_is_refused() -> None:
    """With what differs; the model stays as it is."""
    work = after_training()
    assert isinstance(work.model, nn.Sequential)
    work.model.append(nn.Linear(1, 1))
    own = whole(work)
    with pytest.raises(WorkloadError, match="the average 'ema' does not fit the model any more"), weights(work, "ema"):
        raise AssertionError("the block is not entered")

    assert equal(whole(work), own)


# ------------------------------------------------------------------------------- planted bugs


def test_a_write_that_autograd_notices_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would refuse to go backward through the student, whose graph is older than the block."""

    def write(self: averages.Average, parameters: dict[str, torch.Tensor], buffers: object) -> None:
        with torch.no_grad():
            for name, parameter in self._present().items():
                parameter.copy_(parameters[name])

    monkeypatch.setattr(averages.Average, "_write", write)
    with pytest.raises(WorkloadError, match="weights were changed"):
        run(start(MeanTeacher().work, epochs=1, seed=0), [ema(0.8, validate=False)])
