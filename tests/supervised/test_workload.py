"""The real workload: the same weights as the five-line loop, and sentences for what does not fit."""

from __future__ import annotations

import contextlib
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fsm_train import (
    Callback,
    CallbackError,
    Phase,
    Sensor,
    State,
    Supervised,
    Transition,
    WorkloadError,
    evaluate,
    extend,
    on,
    predict,
    rounds,
    run,
    start,
)
from fsm_train.callbacks import accumulate, clip_grad_norm, mixed_precision
from tests.models import Noisy, accuracy, adam, diabetes, digits, five_lines, network, same_weights, sgd, shuffled

CROSS_ENTROPY = nn.CrossEntropyLoss()


# ------------------------------------------------------------------------------- the same weights


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("data", [digits(), Noisy(digits())], ids=["plain", "augmented"])
def test_weights_are_those_of_the_five_line_loop(optimizer: Callable[..., Any], data: Any) -> None:
    """With no callbacks, weights and buffers are bit for bit those of the five-line loop."""
    ours, theirs = network(), network()
    torch.manual_seed(5)
    five_lines(theirs, optimizer(theirs), CROSS_ENTROPY, shuffled(data), epochs=3)

    torch.manual_seed(5)
    run(start(Supervised(ours, optimizer(ours), CROSS_ENTROPY, shuffled(data)), epochs=3))

    assert same_weights(ours, theirs)


def test_validating_does_not_change_the_training() -> None:
    """Whether one validates changes no weight, although both loaders and the dropout draw random numbers."""
    data = Noisy(digits())
    ours, theirs = network(), network()
    five = start(Supervised(theirs, sgd(theirs), CROSS_ENTROPY, shuffled(data)), epochs=3, seed=0)
    run(five)

    work = Supervised(ours, sgd(ours), CROSS_ENTROPY, shuffled(data), shuffled(data), metrics={"accuracy": accuracy})
    run(start(work, epochs=3, seed=0))

    assert same_weights(ours, theirs)


def test_validation_leaves_generators_and_modes_as_they_were() -> None:
    """Random generators of Python, NumPy, torch and the loaders, and each module's mode, are put back."""
    model = network()
    model.train()
    model[1].eval()  # frozen batch norm, as in fine-tuning
    own = torch.Generator().manual_seed(3)
    valid = DataLoader(Noisy(digits()), batch_size=32, shuffle=True, generator=own)
    work = Supervised(model, sgd(model), _draws_from_all_generators, shuffled(digits()), valid)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), own.get_state()

    metrics = evaluate(work)

    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), own.get_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert torch.equal(before[3], after[3])
    assert [module.training for module in model] == [True, False, True, True, True]
    assert metrics.keys() == {"valid_loss"}


def _draws_from_all_generators(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    random.random(), np.random.rand(), torch.rand(1)
    return nn.functional.cross_entropy(output, target)


def test_validation_is_in_eval_mode_without_gradients() -> None:
    """The validation loss is that of the model in eval mode, and no graph is kept for it."""
    model = network()
    seen: list[tuple[bool, bool]] = []

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((model.training, output.requires_grad))
        return nn.functional.cross_entropy(output, target)

    data = digits(64)
    work = Supervised(model, sgd(model), loss_fn, DataLoader(data, 32), DataLoader(data, 32))
    valid_loss = evaluate(work)["valid_loss"]

    model.eval()
    expected = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).item()
    assert seen == [(False, False)] * 2
    assert valid_loss == pytest.approx(expected, rel=1e-6)


def test_seed_makes_two_runs_equal() -> None:
    """With a seed in the plan, shuffling and dropout are the same each time."""
    models = []
    for _ in range(2):
        models.append(model := network())
        torch.seed()
        run(start(Supervised(model, sgd(model), CROSS_ENTROPY, shuffled(digits())), epochs=2, seed=7))

    assert same_weights(*models)


def test_extended_training_is_the_longer_one() -> None:
    """Two epochs, extended by one, are three: counters, history and weights go on."""
    short, long = network(), network()
    torch.manual_seed(5)
    expected = run(start(Supervised(long, sgd(long), CROSS_ENTROPY, shuffled(digits())), epochs=3))

    torch.manual_seed(5)
    final = run(start(Supervised(short, sgd(short), CROSS_ENTROPY, shuffled(digits())), epochs=2))
    final = run(extend(final, epochs=1))

    assert final == expected
    assert same_weights(short, long)


# ------------------------------------------------------------------------------------ what it takes


@pytest.mark.parametrize("inputs", [lambda x: (x, x), lambda x: [x, x], lambda x: {"a": x, "b": x}])
def test_inputs_may_be_several(inputs: Callable[[torch.Tensor], Any]) -> None:
    """A tuple or list of inputs is passed by position, a mapping by keyword."""
    model = _TwoInputs()
    x, y = torch.randn(8, 4), torch.randn(8, 1)

    final = run(start(Supervised(model, sgd(model), nn.MSELoss(), [(inputs(x), y)]), epochs=1))

    assert final.samples == 8


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.layer(a + b)


def test_split_and_forward_take_other_shapes() -> None:
    """Other batches go through `split`, other calls through `forward`."""
    model = nn.Linear(4, 1)
    batch = {"x": torch.randn(8, 4), "y": torch.randn(8, 1)}
    work = Supervised(
        *(model, sgd(model), nn.MSELoss(), [batch]),
        split=lambda batch: (batch["x"], batch["y"]),
        forward=lambda model, inputs: 2 * model(inputs),
    )
    with torch.no_grad():
        expected = nn.functional.mse_loss(2 * model(batch["x"]), batch["y"]).item()

    final = run(start(work, epochs=1))

    assert final.metrics["train_loss"] == expected


class _Stream(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(*diabetes().tensors, strict=True)


def test_unsized_loaders_train() -> None:
    """A loader that does not know its length gives as many batches as it gives, each epoch."""
    model = nn.Linear(10, 1)

    final = run(start(Supervised(model, sgd(model), nn.MSELoss(), DataLoader(_Stream(), batch_size=100)), epochs=2))

    assert (final.epoch, final.iteration, final.samples) == (2, 10, 884)


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_are_validated_and_evaluated(workers: int) -> None:
    """As the same samples in a list are: the iterator of a loader over a stream has a length that raises."""

    def stream() -> DataLoader[Any]:
        return DataLoader(_Stream(), batch_size=442, num_workers=workers)

    model = nn.Linear(10, 1)
    streamed = Supervised(model, sgd(model), nn.MSELoss(), stream(), {"all": stream(), "again": stream()})
    final = run(start(streamed, epochs=1))

    listed = Supervised(model, sgd(model), nn.MSELoss(), list(stream()), list(stream()))
    assert final.metrics["valid_all_loss"] == evaluate(listed)["valid_loss"]
    assert evaluate(streamed, stream(), prefix="test") == evaluate(listed, list(stream()), prefix="test")
    assert torch.equal(predict(streamed, stream()), predict(listed, list(stream())))


def test_train_loss_is_the_mean_over_samples() -> None:
    """The train loss weighs batches by their size; a smaller last batch does not count as much as a full one."""
    model = nn.Linear(10, 1)
    losses: list[tuple[float, int]] = []

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.mse_loss(output, target)
        losses.append((loss.item(), len(target)))
        return loss

    final = run(start(Supervised(model, sgd(model), loss_fn, DataLoader(diabetes(), 100)), epochs=1))

    assert [size for _, size in losses] == [100, 100, 100, 100, 42]
    assert final.metrics["train_loss"] == sum(loss * size for loss, size in losses) / 442


def test_metrics_are_measured_on_both_splits() -> None:
    """A function is averaged over samples, a torchmetrics object computes for itself; each split has its own."""
    model, data = network(), digits(100)
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=10, average="micro")
    work = Supervised(
        *(model, sgd(model), CROSS_ENTROPY, DataLoader(data, 32), DataLoader(data, 32)),
        metrics={"accuracy": accuracy, "theirs": metric},
    )

    metrics = run(start(work, epochs=1)).metrics

    assert list(metrics) == [
        *("train_loss", "train_accuracy", "train_theirs"),
        *("valid_loss", "valid_accuracy", "valid_theirs"),
    ]
    assert metrics["train_accuracy"] == pytest.approx(metrics["train_theirs"], rel=1e-6)
    assert metrics["valid_accuracy"] == pytest.approx(metrics["valid_theirs"], rel=1e-6)


def test_metric_collection_gives_a_metric_for_each_key() -> None:
    """A metric that computes a mapping appears under each of its keys."""
    model = nn.Linear(10, 1)
    both = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()])
    work = Supervised(model, sgd(model), nn.MSELoss(), DataLoader(diabetes(), 100), metrics={"error": both})

    metrics = run(start(work, epochs=1)).metrics

    assert metrics["train_error_MeanSquaredError"] == pytest.approx(metrics["train_loss"], rel=1e-5)


def test_facts_are_measured_when_needed() -> None:
    """The loss, the norm of the gradient, sensors and the time are read for a callback that needs them."""
    model = nn.Linear(10, 1)
    loss = nn.functional.mse_loss(model(diabetes().tensors[0]), diabetes().tensors[1])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    seen: list[dict[str, float]] = []

    @on(Phase.STEP_BEGIN, needs={"loss", "grad_norm", "elapsed", "largest"})
    def look(state: State) -> None:
        seen.append(dict(state.facts))

    work = Supervised(
        *(model, sgd(model), nn.MSELoss(), DataLoader(diabetes(), 442)),
        sensors={"largest": lambda work: work.inputs.abs().max()},
    )
    run(start(work, epochs=1), [look])

    assert seen[0]["batch_size"] == 442
    assert seen[0]["loss"] == loss.item()
    assert seen[0]["grad_norm"] == torch.nn.utils.get_total_norm(gradients).item()
    assert seen[0]["largest"] == diabetes().tensors[0].abs().max().item()
    assert 0 < seen[0]["elapsed"] < 60


def test_sensor_declares_its_reduction() -> None:
    """It is called as its function is, and a plain function declares none."""
    model = nn.Linear(3, 1)
    work = Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        nn.MSELoss(),
        [(torch.ones(4, 3), torch.zeros(4, 1))],
        sensors={"rows": Sensor(lambda work: len(work.inputs), reduction="sum"), "largest": lambda work: 1.0},
    )

    @on(Phase.LOSS_END, needs={"rows"}, memory=0.0)
    def remember(state: State, _: float) -> Transition:
        return Transition(memory=state.facts["rows"])

    assert work.reductions == {"rows": "sum"}
    assert run(start(work, epochs=1), [remember]).memory["remember"] == 4.0


def test_hyper_parameters_are_those_of_the_groups() -> None:
    """One group gives numbers, several give tuples; betas are two numbers; what a callback sets arrives."""
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[4].parameters(), "lr": 0.2}]
    work = Supervised(model, torch.optim.Adam(groups), CROSS_ENTROPY, DataLoader(digits(64), 32))

    @on(Phase.EPOCH_BEGIN)
    def change(state: State) -> Transition:
        return Transition(hyper={"lr": (1.0, 2.0), "beta1": 0.5, "weight_decay": 3})

    final = run(start(work, epochs=1), [change])

    assert final.hyper["lr"] == (1.0, 2.0)
    assert [(g["lr"], g["betas"], g["weight_decay"]) for g in work.optimizer.param_groups] == [
        (1.0, (0.5, 0.999), 3.0),
        (2.0, (0.5, 0.999), 3.0),
    ]


def test_tensor_learning_rate_is_written_in_place() -> None:
    """A learning rate that is a tensor stays that tensor, since a captured step reads it."""
    model = nn.Linear(10, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5), capturable=False, foreach=False)
    rate = optimizer.param_groups[0]["lr"]
    work = Supervised(model, optimizer, nn.MSELoss(), DataLoader(diabetes(), 442))

    work.set_hyper({"lr": 0.25})

    assert rate.item() == 0.25 == work.hyper()["lr"]


# ------------------------------------------------------------------------------ what does not fit


def _work(**changes: Any) -> Supervised:
    model = changes.pop("model", None) or nn.Linear(10, 1)
    parts: dict[str, Any] = {
        "optimizer": sgd(model) if any(True for _ in model.parameters()) else sgd(nn.Linear(1, 1)),
        "loss_fn": nn.MSELoss(),
        "train": DataLoader(diabetes(), 100),
    }
    return Supervised(model, **{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": iter([1])}, "train is an iterator .list_iterator., which would be empty in the second epoch"),
        ({"train": (x for x in [1])}, "train is an iterator .generator."),
        ({"train": []}, "train has no batches"),
        ({"train": DataLoader(TensorDataset(torch.zeros(3, 1)), 4, drop_last=True)}, "smaller than one batch"),
        ({"valid": []}, "valid has no batches"),
        ({"train": 3}, "train is an int, but batches are to come from it"),
        ({"model": nn.ReLU()}, "the model has no parameters"),
        ({"optimizer": sgd(nn.Linear(3, 3))}, "2 of the optimizer's 2 parameters are not the model's"),
        ({"optimizer": nn.MSELoss(), "loss_fn": 3}, "optimizer is an MSELoss"),
        ({"loss_fn": 3}, "loss_fn is an int"),
        ({"metrics": {"accuracy": 3}}, "the metric 'accuracy' is an int"),
        ({"metrics": {"loss": accuracy}}, "cannot be called 'loss'"),
        ({"sensors": {"loss": len}}, "a sensor cannot be called 'loss'"),
        ({"sensors": {"tokens": 3}}, "the sensor 'tokens' is an int"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_made(changes: dict[str, Any], sentence: str) -> None:
    """Before anything is trained, a sentence says what was found."""
    with pytest.raises((WorkloadError, TypeError, ValueError), match=sentence):
        _work(**changes)


class _NotAModel:
    def parameters(self) -> Iterator[nn.Parameter]:
        return iter([nn.Parameter(torch.zeros(1))])


def test_a_model_that_is_none_is_refused() -> None:
    """Something that only looks like a module is not trained."""
    with pytest.raises(WorkloadError, match="model is a _NotAModel, not a torch.nn.Module"):
        Supervised(_NotAModel(), sgd(nn.Linear(1, 1)), nn.MSELoss(), [1])  # type: ignore[arg-type]


X, Y = torch.zeros(4, 10), torch.zeros(4, 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": [{"x": X, "y": Y}]}, "the loader gave a mapping with the keys 'x', 'y': pass split=lambda"),
        ({"train": [(X, X, Y)]}, "the loader gave a tuple of 3: pass split=lambda"),
        ({"train": [X]}, "the loader gave a Tensor"),
        ({"train": [(X, Y)], "split": lambda batch: X}, "split returned a Tensor"),
        ({"train": [("a", "b")]}, "there is no tensor with a first dimension in a batch"),
        ({"train": [(torch.tensor(1.0), Y)]}, "Is the loader batched"),
        ({"loss_fn": lambda output, target: 1.0}, "loss_fn returned a float, 1.0"),
        ({"loss_fn": lambda output, target: (output - target) ** 2}, r"a tensor of shape \(100, 1\).*take its mean"),
        ({"loss_fn": lambda output, target: output.detach().mean()}, "the loss has no gradient"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(changes: dict[str, Any], sentence: str) -> None:
    """What only a batch can show is said in a sentence, with a note that says where, and no weight is touched."""
    work = _work(**changes)
    before = [p.clone() for p in work.parameters]

    with pytest.raises(WorkloadError, match=sentence) as caught:
        run(start(work, epochs=1))

    assert "of epoch 0, batch 0, step 0" in caught.value.__notes__[0]
    assert all(torch.equal(a, b) for a, b in zip(before, work.parameters, strict=True))


class _Once:
    """Can be iterated once, but does not look like an iterator."""

    def __init__(self) -> None:
        self.batches = iter([(X, Y)])

    def __iter__(self) -> Iterator[Any]:
        return self.batches


@pytest.mark.parametrize("split", ["train", "valid"])
def test_loader_that_does_not_begin_anew_is_found(split: str) -> None:
    """An iterator in disguise is found at the epoch in which it gives nothing."""
    with pytest.raises(WorkloadError, match=f"{split} gave no batch.*starts no new pass"):
        run(start(_work(**{split: _Once()}), epochs=2))


def test_exception_in_the_model_keeps_its_type_and_gets_a_note() -> None:
    """The original exception comes out, with a note that says which operation, and when."""
    calls = []

    class Fails(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 7:
                raise ZeroDivisionError("of all things")
            return super().forward(inputs)

    with pytest.raises(ZeroDivisionError, match="of all things") as caught:
        run(start(_work(model=Fails(10, 1)), epochs=3))

    assert caught.value.__notes__[0].startswith("Raised by forward, after ")
    assert "of epoch 1, batch 1, step 6." in caught.value.__notes__[0]


@pytest.mark.parametrize("callbacks", [(), (mixed_precision("bfloat16"),)], ids=["plain", "mixed"])
@pytest.mark.parametrize("operation", ["forward", "loss", "backward", "step", "zero"])
def test_error_in_a_fused_step_names_the_operation(
    operation: str, callbacks: tuple[Callback[Any], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody looks inside a step it is one call, and an error in it still says where it was."""

    def fails(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("of all things")

    work = _work()
    owners: dict[str, tuple[object, str]] = {
        "forward": (work.model, "forward"),
        "loss": (work, "loss_fn"),
        "backward": (torch.Tensor, "backward"),
        "step": (work.optimizer, "step"),
        "zero": (work.optimizer, "zero_grad"),
    }
    state = start(work, epochs=1)
    begun = Callback("begun", Phase.TRAIN_BEGIN, lambda *_: monkeypatch.setattr(*owners[operation], fails))

    with pytest.raises(ZeroDivisionError) as caught:
        run(state, (*callbacks, begun))

    assert caught.value.__notes__[0].startswith(f"Raised by {operation}, after ")


def test_error_after_a_failed_step_names_its_own_operation() -> None:
    """What failed in an earlier run of the same workload is forgotten."""
    work = _work()
    state = start(work, epochs=1)
    loss_fn, work.loss_fn = work.loss_fn, lambda output, target: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(state)
    work.loss_fn, work.train = loss_fn, [1]

    with pytest.raises(WorkloadError) as caught:
        run(start(work, epochs=1))

    assert caught.value.__notes__[0].startswith("Raised by fetch, after ")


def test_registered_function_replaces_that_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two was registered first."""
    from fsm_train.core.commands import ClipGradNorm
    from fsm_train.worlds import registry

    def clip(work: Supervised, command: ClipGradNorm) -> None:
        """A function of the user's own."""

    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(registry, "_DEFAULTS", dict(registry._DEFAULTS))
    default = registry.handler_of(ClipGradNorm)
    registry.carries_out(ClipGradNorm)(clip)
    registry.carries_out_by_default(ClipGradNorm)(default)

    assert registry.handler_of(ClipGradNorm) is clip


def test_unknown_command_says_how_to_register_it() -> None:
    """A command that nothing carries out is an error that names it and the decorator."""
    from tests.unhandled_command import Shake

    @on(Phase.STEP_BEGIN)
    def shake(state: State) -> Transition:
        return Transition(commands=(Shake(),))

    with pytest.raises(WorkloadError, match=r"carries out the command Shake: decorate .* @carries_out\(Shake\)"):
        run(start(_work(), epochs=1), [shake])


def test_clipping_is_torchs_own() -> None:
    """Weights with clip_grad_norm are bit for bit those of a loop with torch's clip_grad_norm_."""
    ours, theirs = network(), network()
    optimizer = sgd(theirs)
    torch.manual_seed(5)
    for inputs, target in shuffled(digits()):
        CROSS_ENTROPY(theirs(inputs), target).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(5)
    run(start(Supervised(ours, sgd(ours), CROSS_ENTROPY, shuffled(digits())), epochs=1), [clip_grad_norm(0.1)])

    assert same_weights(ours, theirs)


# --------------------------------------------------------------------------- one training after another


def test_new_training_does_not_inherit_gradients() -> None:
    """Those that a failed training left waiting for a step are nothing to the next one."""
    halves = list(zip(*(tensor[:12].split((4, 4, 4)) for tensor in diabetes().tensors), strict=True))
    models = [nn.Linear(10, 1), nn.Linear(10, 1)]
    models[1].load_state_dict(models[0].state_dict())
    fresh, used = (Supervised(model, sgd(model), nn.MSELoss(), halves) for model in models)

    @on(Phase.BATCH_END)
    def fail(state: State) -> None:
        raise ZeroDivisionError

    with pytest.raises(CallbackError):
        run(start(used, epochs=1), [accumulate(2), fail])
    for work in (fresh, used):
        run(start(work, epochs=1), [accumulate(2)])

    assert same_weights(*models)


def test_everything_is_undone_even_if_one_thing_cannot_be() -> None:
    """An error in undoing one thing does not keep the others from being undone."""
    work, undone = _work(), []

    @on(Phase.TRAIN_BEGIN)
    def put_in_place(state: State) -> None:
        work.undo_at_finish(lambda: undone.append("first"))
        work.undo_at_finish(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        run(start(work, epochs=1), [put_in_place])

    assert undone == ["first"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_that_is_over_lets_its_workload_go(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, and its place on a device, go with their last user, and not when Python next looks for cycles."""
    work = _work()
    used = weakref.ref(work)
    monkeypatch.setattr(rounds, "NEEDED", 0)

    @on(Phase.BATCH_END)
    def callback(state: State) -> None:
        if fails and state.iteration == 3:
            raise ZeroDivisionError

    gc.disable()
    try:
        with contextlib.suppress(CallbackError):
            run(start(work, epochs=1), [callback])
        del work
        assert used() is None
    finally:
        gc.enable()
