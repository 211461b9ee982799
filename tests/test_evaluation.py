"""`evaluate` on data of one's own: its numbers are those of a plain loop, and the training is as without it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from fsm_train import (
    Evaluation,
    Phase,
    Supervised,
    WorkloadError,
    evaluate,
    iterate,
    predict,
    restore,
    run,
    start,
    weights,
)
from fsm_train.callbacks import checkpoint, ema
from fsm_train.worlds.scripted import Scripted

INPUTS = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
TARGET = (INPUTS.sum(1) > 0).long()
ROWS = TensorDataset(INPUTS, TARGET)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


class Noisy(torch.utils.data.Dataset[Any]):
    """Samples with noise of three generators."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        inputs, target = ROWS[index]
        return inputs + torch.randn(4) + random.random(), target


class Counting(BatchSampler):
    """Gives the batches in an order that depends on how many it gave before."""

    def __init__(self) -> None:
        super().__init__(SequentialSampler(ROWS), 10, drop_last=False)
        self.given = 0

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            self.given += 1
            yield [(index + self.given) % len(ROWS) for index in batch]


def work(train: Any = None, valid: Any = None, **settings: Any) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(ROWS, batch_size=10, shuffle=True) if train is None else train
    return Supervised(model, optimizer, nn.CrossEntropyLoss(), loader, valid, **settings)


def everything(of: Supervised) -> list[Any]:
    return [value.tolist() for value in of.model.state_dict().values()]


def test_numbers_are_those_of_a_plain_loop() -> None:
    """Loss and metrics over unequal batches, without validation data, by the name test or another."""
    training = work(metrics={"accuracy": accuracy})
    run(start(training, epochs=2, seed=0))
    training.model.eval()
    with torch.no_grad():
        output = training.model(INPUTS)
        loss = nn.functional.cross_entropy(output.double(), TARGET).item()
    training.model.train()

    metrics = evaluate(training, DataLoader(ROWS, batch_size=16))

    assert metrics.keys() == {"test_loss", "test_accuracy"}
    assert metrics["test_accuracy"] == pytest.approx(accuracy(output, TARGET).item())
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-6)
    assert evaluate(training, iter(DataLoader(ROWS, batch_size=16)), prefix="holdout") == {
        name.replace("test", "holdout"): value for name, value in metrics.items()
    }


def test_own_data_keep_their_names_unless_there_is_a_prefix() -> None:
    """On the validation data as before; the same data given have the same numbers."""
    batches = [(INPUTS, TARGET)]
    training = work(valid=batches)
    measured = evaluate(training)

    assert measured == {"valid_loss": evaluate(training, batches)["test_loss"]}
    assert evaluate(training, prefix="final") == {"final_loss": measured["valid_loss"]}
    assert training.valid is batches


def test_a_metric_that_has_a_name_of_its_own_keeps_it() -> None:
    """A workload that measures in its own way may name its metrics as it likes."""

    class Own(Scripted):
        def measure_valid(self, state: Any) -> dict[str, float]:
            return {"valid_loss": 1.0, "seconds": 2.0}

    assert evaluate(Own(valid_loss=1.0), prefix="final") == {"final_loss": 1.0, "seconds": 2.0}


LOADERS: dict[str, Callable[[], Any]] = {
    "a list": lambda: [(INPUTS[:20], TARGET[:20])] * 2,
    "a generator": lambda: ((INPUTS[i : i + 10], TARGET[i : i + 10]) for i in range(0, 50, 10)),
    "random samples in a random order": lambda: DataLoader(Noisy(), batch_size=10, shuffle=True),
    "a loader with a generator": lambda: DataLoader(
        ROWS, batch_size=10, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "persistent workers": lambda: DataLoader(ROWS, batch_size=25, num_workers=1, persistent_workers=True),
    "the training data": lambda: None,
}


@pytest.mark.parametrize("sampler", ["shuffle", "counting", "persistent workers"])
@pytest.mark.parametrize("data", LOADERS)
def test_a_training_is_as_without_it(data: str, sampler: str) -> None:
    """In a loop over `iterate`, at each batch and epoch: weights, buffers, metrics and generators to the last bit."""
    trains: dict[str, Callable[[], Any]] = {
        "shuffle": lambda: DataLoader(Noisy(), batch_size=10, shuffle=True),
        "counting": lambda: DataLoader(ROWS, batch_sampler=Counting()),
        "persistent workers": lambda: DataLoader(
            ROWS, batch_size=10, shuffle=True, num_workers=1, persistent_workers=True
        ),
    }
    settings = {"metrics": {"top": MulticlassAccuracy(2)}}
    alone, beside = (work(trains[sampler](), [(INPUTS, TARGET)], **settings) for _ in range(2))
    final = run(start(alone, epochs=2, seed=0), [ema(0.9)])
    after = torch.rand(3), random.random()
    at = [Phase.TRAIN_BEGIN, Phase.LOSS_END, Phase.EPOCH_END]
    for state in iterate(start(beside, epochs=2, seed=0), [ema(0.9)], at=at):
        if state.phase in at and not (state.phase is Phase.LOSS_END and state.batch % 3):
            before = (beside.inputs, beside.target, beside.output, beside.batch_size, beside.model.training)
            given = LOADERS[data]()
            assert evaluate(beside, beside.train if given is None else given).keys() == {"test_loss", "test_top"}
            now = (beside.inputs, beside.target, beside.output, beside.batch_size, beside.model.training)
            assert all(one is other or one == other for one, other in zip(before, now, strict=True))

    assert state.history == final.history
    assert everything(beside) == everything(alone)
    assert (torch.rand(3).tolist(), random.random()) == (after[0].tolist(), after[1])
    assert beside.carried_over.measured_with == alone.carried_over.measured_with == "ema"


def test_a_failure_in_the_data_leaves_the_training_whole() -> None:
    """The error says in which batch of the data it was, and the training goes on as if nothing had been asked."""
    alone, beside = work(), work()
    run(start(alone, epochs=1, seed=0))

    def breaks() -> Iterator[Any]:
        yield INPUTS, TARGET
        raise RuntimeError("the disk is gone")

    for state in iterate(start(beside, epochs=1, seed=0), at=[Phase.BATCH_END]):
        if state.phase is Phase.BATCH_END:
            with pytest.raises(RuntimeError, match="the disk is gone") as raised:
                evaluate(beside, breaks())
            assert raised.value.__notes__ == ["Raised in evaluate(work, data), in batch 1 of data, counted from 0."]

    assert everything(beside) == everything(alone)


class Placed(list[Any]):
    """A loader that saves its place."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""


WRONG: dict[str, tuple[Any, str]] = {
    "a tensor": (INPUTS, "write evaluate(work, DataLoader(TensorDataset(inputs, target), batch_size=32))"),
    "an array": (INPUTS.numpy(), "write evaluate(work, DataLoader(TensorDataset(inputs, target), batch_size=32))"),
    "two tensors": ((INPUTS, TARGET), "a tuple of two tensors, but batches are to come from it"),
    "a dataset": (ROWS, "write evaluate(work, DataLoader(data, batch_size=32))"),
    "a mapping": ({"clean": [(INPUTS, TARGET)]}, "write evaluate(work, data[…])"),
    "an evaluation of one": (Evaluation(Evaluation([])), "write evaluate(work, evaluation.data) for its data"),
    "a text": ("test.csv", "data is a str"),
    "a number": (3, "write evaluate(work, DataLoader(data, batch_size=32))"),
    "layers": (nn.Sequential(nn.Linear(4, 2)), "data is a Sequential"),
    "nothing": ([], "data has no batches"),
    "a used iterator": (iter([]), "an iterator that was used before"),
    "no pairs": ([INPUTS], "a batch is to be a pair (inputs, target)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_gives_no_batches_is_refused(wrong: str) -> None:
    """With the call to write, and the workload as before."""
    data, sentence = WRONG[wrong]
    training = work()
    with pytest.raises(WorkloadError) as raised:
        evaluate(training, data)

    assert sentence in str(raised.value)
    assert training.valid is None
    assert training.model.training


def test_a_loader_that_saves_its_place_is_refused_as_both() -> None:
    """To evaluate on it would move the place in the training data."""
    training = work(Placed([(INPUTS, TARGET)]))
    with pytest.raises(WorkloadError, match="Give data a loader of its own"):
        evaluate(training, training.train)


@pytest.mark.parametrize(
    ("prefix", "error", "sentence"),
    [(3, TypeError, "prefix is an int"), ("", ValueError, "prefix is empty"), ("\udcff", ValueError, "no valid text")],
)
def test_a_prefix_is_a_name(prefix: Any, error: type[Exception], sentence: str) -> None:
    """Anything else is refused, with the call to write."""
    with pytest.raises(error, match=sentence):
        evaluate(Scripted(valid_loss=1.0), prefix=prefix)


def test_arguments_that_do_not_fit_are_refused() -> None:
    """A prefix by position, data for a workload that has none, and no data at all."""
    with pytest.raises(TypeError, match=r"write evaluate\(work, data, prefix='holdout'\)"):
        evaluate(work(), [], "holdout")  # type: ignore[misc]
    with pytest.raises(WorkloadError, match=r"a Scripted measures its own data alone: write evaluate\(work\)"):
        evaluate(Scripted(valid_loss=1.0), [1])
    with pytest.raises(ValueError, match=r"or other data here: evaluate\(work, data\)"):
        evaluate(work())


def test_a_training_that_was_asked_resumes_as_one_that_was_not(tmp_path: Path) -> None:
    """Suspended in the middle of an epoch, after an evaluation and a prediction at each batch: to the last bit."""

    def fresh() -> Supervised:
        return work(DataLoader(Noisy(), batch_size=10, shuffle=True), [(INPUTS, TARGET)])

    alone, asked = fresh(), fresh()
    final = run(start(alone, epochs=3, seed=0), [ema(0.9)])
    callbacks = [ema(0.9), checkpoint(tmp_path, every_steps=1)]
    for state in iterate(start(asked, epochs=3, seed=0), callbacks, at=[Phase.BATCH_BEGIN]):
        if state.phase is Phase.BATCH_BEGIN:
            evaluate(asked, DataLoader(Noisy(), batch_size=20, shuffle=True))
            assert predict(asked, asked.train).shape == (50, 2)
            if state.iteration == 8:  # as if it were killed here
                break

    resumed = fresh()
    state = run(restore(tmp_path, resumed), callbacks)
    assert state.history == final.history
    assert everything(resumed) == everything(alone)


# ------------------------------------------------------------------------------- an evaluation as data

OTHERS = [(INPUTS[:16], TARGET[:16]), (INPUTS[16:50], TARGET[16:50])]


def in_a_loop(model: nn.Module, measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
    """The mean over the samples of `OTHERS`, of a plain loop in eval mode."""
    model.eval()
    with torch.no_grad():
        values = [(measure(model(inputs), target).double(), len(target)) for inputs, target in OTHERS]
    model.train()
    return sum(value.item() * size for value, size in values) / len(INPUTS)


def test_an_evaluation_has_its_own_loss_metrics_and_forward() -> None:
    """In the place of the training's, for this once; without a loss there is none."""
    training = work(metrics={"accuracy": accuracy}, valid=[(INPUTS, TARGET)])
    run(start(training, epochs=1, seed=0))
    own = Evaluation(
        OTHERS,
        loss_fn=nn.MultiMarginLoss(),
        metrics={"positive": lambda output, target: (output > 0).float().mean()},
        forward=lambda model, inputs: 2 * model(inputs),
    )

    metrics = evaluate(training, own, prefix="twice")

    assert metrics == {
        "twice_loss": pytest.approx(in_a_loop(training.model, lambda o, t: nn.MultiMarginLoss()(2 * o, t)), rel=1e-6),
        "twice_positive": pytest.approx(in_a_loop(training.model, lambda o, t: (o > 0).float().mean()), rel=1e-6),
    }
    assert evaluate(training, Evaluation(OTHERS, loss_fn=None)).keys() == {"test_accuracy"}
    assert evaluate(training).keys() == {"valid_loss", "valid_accuracy"}


def test_an_evaluation_has_the_weights_that_it_names() -> None:
    """Those of the average in a loop over `iterate`, at each step; the own ones also where a run validates with it."""
    training = work(valid=OTHERS)
    seen: list[tuple[float, float]] = []
    for state in iterate(start(training, epochs=1, seed=0), [ema(0.8)], at=[Phase.BATCH_END]):
        if state.phase is Phase.BATCH_END:
            average, own = (evaluate(training, Evaluation(OTHERS, weights=name)) for name in ("ema", "own"))
            seen.append((average["test_loss"], own["test_loss"]))
            assert seen[-1][1] == pytest.approx(in_a_loop(training.model, nn.CrossEntropyLoss()), rel=1e-6)
            with weights(training, "ema"):
                assert seen[-1][0] == pytest.approx(in_a_loop(training.model, nn.CrossEntropyLoss()), rel=1e-6)

    assert len({loss for pair in seen for loss in pair}) == 9  # the first update is a copy
    assert state.metrics["valid_loss"] == seen[-1][0]  # after the end the model has the average
    assert evaluate(training, OTHERS)["test_loss"] == seen[-1][0]
    assert evaluate(training, Evaluation(OTHERS))["test_loss"] == seen[-1][0]  # what the training ended with
    with pytest.raises(WorkloadError, match=r"data is with weights='slow', .* there are 'ema'\. "):
        evaluate(training, Evaluation(OTHERS, weights="slow"))


def test_an_evaluation_with_a_seed_draws_the_same_each_time() -> None:
    """From data and model, whatever was drawn before; and `every` counts only the validations of a run."""
    training = work(valid=OTHERS)
    noisy = Evaluation(DataLoader(Noisy(), batch_size=10, shuffle=True), seed=3, every=5)

    first = evaluate(training, noisy)
    torch.rand(7), random.random()
    before = torch.random.get_rng_state()

    assert evaluate(training, noisy) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert evaluate(training, Evaluation(noisy.data)) != first


def test_a_training_is_as_without_evaluations_of_other_weights(tmp_path: Path) -> None:
    """Left in mid-epoch and resumed, with evaluations of each kind between the steps: to the last bit."""
    noisy = DataLoader(Noisy(), batch_size=20, shuffle=True)
    kinds = [Evaluation(noisy, seed=1), Evaluation(noisy, weights="ema"), Evaluation(OTHERS, loss_fn=None, metrics={})]

    def fresh() -> Supervised:
        return work(DataLoader(Noisy(), batch_size=10, shuffle=True), OTHERS)

    alone, asked = fresh(), fresh()
    final = run(start(alone, epochs=2, seed=0), [ema(0.8)])
    callbacks = [ema(0.8), checkpoint(tmp_path, every_steps=1)]
    for state in iterate(start(asked, epochs=2, seed=0), callbacks, at=[Phase.BATCH_END]):
        if state.phase is Phase.BATCH_END:
            for kind in kinds:
                evaluate(asked, kind)
            if state.iteration == 7:  # as if it were killed here
                break

    resumed = fresh()
    state = run(restore(tmp_path, resumed), callbacks)
    assert state.history == final.history
    assert everything(resumed) == everything(alone)
