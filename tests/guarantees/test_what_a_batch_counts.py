"""What a batch counts is known, or asked for: in means, samples, accumulation, logs and checkpoints."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fsm_train import Phase, State, Supervised, WorkloadError, evaluate, on, read_log, replay, restore, run, start
from fsm_train.callbacks import accumulate, checkpoint, mixup, record, swa
from fsm_train.data.batches import check_loader
from fsm_train.data.counting import count
from fsm_train.eventlog import Line
from fsm_train.testing import simulate

T = torch.zeros


def work(batches: Any, valid: Any = None, *, loss: Any = None, lr: float = 0.0, **settings: Any) -> Supervised:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Supervised(model, optimizer, loss or nn.MSELoss(), batches, valid, **settings)


def drawn(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(size, 3), torch.randn(size, 1)) for size in sizes]


# ---------------------------------------------------------------------------- time first, and its kin


def test_time_first_is_refused_and_samples_makes_it_exact() -> None:
    """Batches of shape (time, batch, features) are refused with the advice samples=, and with it the mean is true."""
    lengths = (50, 5)
    batches = [(torch.randn(t, 8, 3), torch.full((8,), float(t))) for t in lengths]

    def last(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs[-1])[:, 0]

    def training(**settings: Any) -> State:
        model = nn.Linear(3, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return start(Supervised(model, optimizer, nn.L1Loss(), batches, forward=last, **settings), epochs=1)

    with pytest.raises(WorkloadError, match=r"inputs \(50, 8, 3\), target \(8,\).*samples="):
        run(training())
    final = run(training(samples=lambda inputs, target: len(target)))
    assert (final.samples, final.metrics["train_loss"]) == (16, sum(lengths) / 2)


def test_sizes_that_agree_by_chance_in_the_first_batch_are_found_in_the_second() -> None:
    """A first batch of eight steps for eight samples says nothing of the next."""
    batches = [(T(8, 8, 3), T(8, 1)), (T(5, 8, 3), T(8, 1))]

    with pytest.raises(WorkloadError, match="samples="):
        run(start(work(batches, forward=lambda model, x: model(x[-1])), epochs=1))


@pytest.mark.parametrize(
    ("inputs", "target", "size"),
    [
        (T(8, 3), T(8), 8),
        (T(8, 3), None, 8),
        (T(8, 3), (None, {"rest": None}), 8),
        ((T(8, 5, 3), T(8)), T(8), 8),
        ((T(8, 5), [5, 4, 3, 2, 1, 1, 1, 1]), T(8), 8),
        ({"input_ids": T(8, 5), "attention_mask": T(8, 5), "flag": True, "temperature": T(())}, T(8, 5), 8),
        (T(2, 3, 4, 4), [{"boxes": T(1, 4), "labels": T(1)}, {"boxes": T(5, 4), "labels": T(5)}], 2),
        (["a text", "another"], T(2), 2),
        (np.zeros((4, 2)), T(4), 4),
        ((T(8, 3), object()), T(8), 8),
        ([T(8, 3), T(8, 2)], (T(8), T(8)), 8),
        (torch.nested.nested_tensor([T(2), T(3)], layout=torch.jagged), T(2), 2),
        (T(0, 3), T(0), 0),
        ([], [], 0),
    ],
)
def test_parts_that_agree_say_the_number(inputs: Any, target: Any, size: int) -> None:
    """The common first dimension, or the length of a list of texts, numbers or mappings."""
    assert count(inputs, target) == size


@pytest.mark.parametrize(
    ("inputs", "target"),
    [
        ({"mask": T(5, 5), "x": T(8, 5)}, T(8)),
        ((T(5, 8, 3), T(8)), T(8)),
        (T(5, 8, 3), [1, 0, 1, 0, 1, 0, 1, 0]),
        ([T(3, 4, 4), T(3, 5, 5)], [{"boxes": T(1, 4)}, {"boxes": T(2, 4)}]),
        ([T(2), T(5)], T(2)),
        (pack_sequence([T(3, 2), T(2, 2)]), T(2)),
        (object(), T(8)),
        (T(8, 3), object()),
        ([object(), object()], T(2)),
        (T(3, 4, 4), 7),
        (T(3, 4, 4), T(())),
        (T(3, 4, 4), "cat"),
        (T(3, 4, 4), {"label": 7}),
        (T(()), T(8)),
        (1.0, 2.0),
    ],
)
def test_parts_that_do_not_agree_are_asked_about(inputs: Any, target: Any) -> None:
    """What cannot be known is refused, and the sentence says samples=."""
    with pytest.raises(WorkloadError, match="samples="):
        count(inputs, target)
    assert count(inputs, target, lambda inputs, target: 3) == 3


@pytest.mark.parametrize("target", [None, [T(1, 4, 4)] * 8])
def test_list_may_hold_samples_where_the_user_calls_the_model(target: Any) -> None:
    """Eight images of one channel are not one sample; as arguments of the model they would be."""
    images = [T(1, 4, 4)] * 8

    assert count(images, target) == 1
    with pytest.raises(WorkloadError, match="samples="):
        count(images, target, by_position=False)


@pytest.mark.parametrize(
    ("answer", "counted"),
    [(2, 2), (2.0, 2), (0.5, 0.5), (torch.tensor(7), 7), (torch.tensor(1.5), 1.5), (np.float32(2.5), 2.5), (0, 0)],
)
def test_answer_of_samples_is_a_number(answer: Any, counted: float) -> None:
    """Whole numbers are ints, so that logs of samples say 32 and not 32.0."""
    result = count(T(4), T(4), lambda inputs, target: answer)

    assert (result, type(result)) == (counted, type(counted))


@pytest.mark.parametrize("answer", [-1, math.nan, math.inf, "3", None, True, torch.tensor([1, 2])])
def test_answer_that_is_no_count_is_refused(answer: Any) -> None:
    """Negative and NaN would make every mean wrong."""
    with pytest.raises(WorkloadError, match="samples gives .* finite number from 0"):
        count(T(4), T(4), lambda inputs, target: answer)


# ------------------------------------------------------------------------------------ what is no loader


class ByIndex:
    """A dataset of one's own: a length, and items by index."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return T(3), T(1)


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return T(3), T(1)


class IterableRows(Rows):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


class FetchesLists(list[Any]):
    def __getitems__(self, indices: list[int]) -> Any: ...


class Streamed(Dataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(drawn(2, 3))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(drawn(2, 3))


@pytest.mark.parametrize(
    "data",
    [TensorDataset(T(64, 8), T(64)), ByIndex(), Rows(), IterableRows(), FetchesLists([(T(3), T(1))])],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.parametrize("which", ["train", "valid"])
def test_dataset_is_refused_with_the_loader_to_write(data: Any, which: str) -> None:
    """Where batches are expected, rows one by one would be trained as batches."""
    with pytest.raises(WorkloadError, match=rf"{which} is a dataset .*DataLoader\({which}_data, batch_size=32"):
        work(*((data,) if which == "train" else (drawn(2), data)))


@pytest.mark.parametrize("data", [T(64, 8), np.zeros((64, 8)), {"inputs": T(64, 8)}], ids=lambda d: type(d).__name__)
def test_data_without_batches_are_refused_with_the_loader_to_write(data: Any) -> None:
    """A tensor, an array, a mapping of columns: none of them gives batches."""
    with pytest.raises(WorkloadError, match=r"DataLoader\("):
        work(data)


@pytest.mark.parametrize("data", [drawn(2, 3), tuple(drawn(2)), Stream(), Streamed(), DataLoader(Rows())])
def test_loader_is_accepted(data: Any) -> None:
    """What gives batches anew in each epoch."""
    assert check_loader(data, "train") is data


def test_rows_in_a_list_are_refused_at_the_first_batch() -> None:
    """A row with a single number as its target is no batch."""
    with pytest.raises(WorkloadError, match=r"target seems to be of a single sample.*DataLoader\("):
        run(start(work([(T(3), torch.tensor(1.0))] * 8), epochs=1))


# ---------------------------------------------------------------------------------- sums and weights


class Summed(nn.MSELoss):
    def __init__(self) -> None:
        super().__init__(reduction="sum")


def sums(output: Any, target: Any, reduction: str = "sum") -> torch.Tensor:
    return mse_loss(output, target, reduction=reduction)


def sums_by_keyword(output: Any, target: Any, *, reduction: str = "sum") -> torch.Tensor:
    return mse_loss(output, target, reduction=reduction)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(reduction="sum"),
        Summed(),
        nn.MSELoss(reduction="sum").forward,
        functools.partial(mse_loss, reduction="sum"),
        functools.partial(functools.partial(sums)),
        functools.partial(nn.MSELoss(reduction="sum")),
        sums,
        sums_by_keyword,
    ],
)
def test_sum_is_said(loss: Any) -> None:
    """A loss that says of itself that it is a sum is warned of, with the word reduction and what follows from it."""
    with pytest.warns(UserWarning, match=r'reduction="sum".*train_loss.*accumulate.*reduction="mean"'):
        work(drawn(2), loss=loss)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        mse_loss,
        functools.partial(sums, reduction="mean"),
        lambda output, target: (output - target).mean(),
    ],
)
def test_mean_is_not_warned_of(loss: Any) -> None:
    """Nor is a function that says nothing of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work(drawn(2), loss=loss)


def tokens(inputs: torch.Tensor, target: torch.Tensor) -> float:
    return float((target != -100).sum())


def token_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)


def token_training(*, lr: float, empty: bool) -> tuple[Supervised, torch.Tensor]:
    """A token model, with one batch that is all padding, and its loss over all tokens."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7))
    targets = torch.randint(0, 7, (4, 2, 5))
    targets[0, :, 1:] = -100
    targets[1] = -100
    batches = [(torch.randint(0, 7, (2, 5)), target) for target in targets]
    with torch.no_grad():
        right = token_loss(torch.cat([model(x) for x, _ in batches]), torch.cat(list(targets)))
    if not empty:
        del batches[1]
    metrics = {"hits": lambda output, target: (output.argmax(-1) == target)[target != -100].double().mean()}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Supervised(model, optimizer, token_loss, batches, batches, samples=tokens, metrics=metrics), right


def test_batch_that_weighs_nothing_is_in_no_mean() -> None:
    """The loss of a batch of padding is NaN over no token; the epoch's is that over all tokens."""
    training, right = token_training(lr=0.0, empty=True)

    final = run(start(training, epochs=1), [accumulate(2)])

    assert final.samples == 22
    assert final.metrics["valid_loss"] == pytest.approx(float(right), rel=1e-5)
    assert final.metrics["train_loss"] == pytest.approx(float(right), rel=1e-5)
    assert math.isfinite(final.metrics["train_hits"])


@pytest.mark.parametrize("watched", [[], [record("loss")], [accumulate(2)]], ids=["fused", "watched", "window"])
def test_batch_that_weighs_nothing_trains_nothing(watched: Any) -> None:
    """Weights and metrics are those without it, whatever looks, and also within a window."""
    (ours, _), (theirs, _) = (token_training(lr=0.5, empty=empty) for empty in (True, False))

    finals = [run(start(each, epochs=2), watched) for each in (ours, theirs)]

    assert [dict(metrics) for metrics in finals[0].history] == [dict(metrics) for metrics in finals[1].history]
    assert finals[0].step == finals[1].step
    assert all(map(torch.equal, ours.model.parameters(), theirs.model.parameters()))


def test_batch_of_no_samples_is_no_batch() -> None:
    """The loader's empty batch is left out, in training, validation, and the statistics that swa makes anew."""

    def trained(sizes: tuple[int, ...]) -> tuple[State, nn.Module]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        full = drawn(*(size for size in sizes if size))
        batches = [full.pop(0) if size else (T(0, 3), T(0, 1)) for size in sizes]
        metrics = {"mean": lambda output, target: output.mean()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = Supervised(model, optimizer, nn.MSELoss(), batches, batches, metrics=metrics)
        return run(start(training, epochs=2), [swa(0)]), model

    (ours, model), (theirs, same) = trained((0, 2, 0, 3, 0)), trained((2, 3))
    assert ours.history == theirs.history
    assert ours.iteration == 10  # each has its turn, so that a training resumes where it was
    assert all(map(torch.equal, model.state_dict().values(), same.state_dict().values()))


def test_evaluation_leaves_out_what_weighs_nothing() -> None:
    """Also where there is no training around it."""
    training, right = token_training(lr=0.0, empty=True)

    assert evaluate(training)["valid_loss"] == pytest.approx(float(right), rel=1e-5)


def test_validation_without_a_batch_that_counts_says_so() -> None:
    """There is no score to go on with."""
    with pytest.raises(WorkloadError, match="valid gave no batch that counts"):
        run(start(work(drawn(2), [(T(0, 3), T(0, 1))]), epochs=1))


def test_accumulation_is_the_union_by_what_batches_count() -> None:
    """A window of batches that count differently has the gradient of all they count, as one batch."""
    training, _ = token_training(lr=0.5, empty=True)
    run(start(training, epochs=1), [accumulate(4)])
    ours = [parameter.detach().clone() for parameter in training.model.parameters()]

    training, _ = token_training(lr=0.5, empty=True)
    inputs, targets = (torch.cat(parts) for parts in zip(*training.train, strict=True))
    loss = token_loss(training.model(inputs), targets)
    loss.backward()
    with torch.no_grad():
        theirs = [parameter - 0.5 * parameter.grad for parameter in training.model.parameters()]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


# ---------------------------------------------------------------- fractions in logs, files and mixing


def fractions(inputs: torch.Tensor, target: torch.Tensor) -> float:
    return len(target) / 3


def test_fractions_go_through_log_replay_and_checkpoint_exactly(tmp_path: Path) -> None:
    """What a batch counts is a float of which no bit is lost."""
    callbacks = [accumulate(2), record("loss"), checkpoint(tmp_path / "saved", every_steps=1)]
    training = work(drawn(2, 5, 7), drawn(4), lr=0.1, samples=fractions)
    final = run(start(training, epochs=2, seed=0), callbacks, log=tmp_path / "run.jsonl")

    assert final.samples == 2 / 3 + 5 / 3 + 7 / 3 + 2 / 3 + 5 / 3 + 7 / 3
    assert replay(tmp_path / "run.jsonl", callbacks).ok
    assert [*read_log(tmp_path / "run.jsonl")][-1].samples == final.samples
    restored = restore(tmp_path / "saved", work(drawn(2, 5, 7), drawn(4), lr=0.1, samples=fractions))
    assert (restored.samples, restored.fetched) == (final.samples, final.fetched)


def test_log_of_a_validation_with_many_empty_batches_replays(tmp_path: Path) -> None:
    """They are passed over, and the counters tell of them."""
    training = work(drawn(2), [(T(0, 3), T(0, 1))] * 9 + drawn(2))
    run(start(training, epochs=2), log=tmp_path / "run.jsonl")

    assert replay(tmp_path / "run.jsonl", []).ok
    assert [line.valid_batch for line in read_log(tmp_path / "run.jsonl") if isinstance(line, Line)][-1] == 10


def test_whole_numbers_stay_ints_in_the_log(tmp_path: Path) -> None:
    """A log of samples says 7, as it did before there was samples=."""
    training = work(drawn(2, 5), samples=lambda inputs, target: float(len(target)))
    run(start(training, epochs=1), log=tmp_path / "run.jsonl")

    assert b'"samples":7,' in (tmp_path / "run.jsonl").read_bytes()
    assert b'"course":[[2,1],[5,1],[null,1]]' in (tmp_path / "run.jsonl").read_bytes()


def test_scripted_batches_may_count_fractions_or_nothing() -> None:
    """A simulation weighs its losses as a training does."""
    final = simulate([], batches=3, batch_size=[0.5, 0, 1.5], loss=[1.0, 3.0], epochs=1)

    assert (final.samples, final.step, final.metrics["train_loss"]) == (2.0, 2, 2.5)
    with pytest.raises(ValueError, match="finite number from 0"):
        simulate([], batches=1, batch_size=-1)


def test_mixing_takes_the_rows_and_not_what_they_count() -> None:
    """A batch of two rows that counts ten tokens has two partners."""
    final = run(start(work(drawn(2), samples=lambda inputs, target: 10), epochs=1), [mixup()])

    assert (final.step, final.samples) == (1, 10)


def test_fact_is_what_the_batch_counts() -> None:
    """Callbacks see it as batch_size."""
    seen = []

    @on(Phase.BATCH_END)
    def look(state: State) -> None:
        seen.append(state.facts["batch_size"])

    run(start(work(drawn(2, 5), samples=fractions), epochs=1), [look])
    assert seen == [2 / 3, 5 / 3]
