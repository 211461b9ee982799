"""What a loader reads whole: the same number for the same samples, and none where that cannot be told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from fsm_train import sharded
from fsm_train.data import reproducible, together
from fsm_train.data.whole_data import padding, whole_data

ROWS = 70_000  # more than is looked at of a tensor


def inputs(change: float = 0.0) -> torch.Tensor:
    values = torch.arange(12.0).view(6, 2)
    values[3, 1] += change
    return values


class Held(Dataset[Any]):
    """Holds its samples, and reads none of them here."""

    def __init__(self, samples: Any, part: int = 0, **more: Any) -> None:
        self.samples, self.part, self.transform = samples, part, str
        vars(self).update(more)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Any:
        raise AssertionError("it is not to be read")


class Slots:
    """Has no attributes but these."""

    __slots__ = ("samples",)

    def __init__(self) -> None:
        self.samples = [1, 2]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        return self.samples[i]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


KNOWN: dict[str, Callable[[float], Any]] = {
    "list of batches": lambda change: [(inputs(change), {"name": "a", "weight": 0.5}), (inputs(), None)],
    "tensors": lambda change: DataLoader(TensorDataset(inputs(change)), batch_size=4, shuffle=True),
    "half precision": lambda change: DataLoader(TensorDataset(inputs(change).bfloat16())),
    "subset": lambda change: DataLoader(Subset(TensorDataset(inputs(change)), [1, 3, 5])),
    "subset of others": lambda change: DataLoader(Subset(TensorDataset(inputs()), [1, 3, 5 - bool(change)])),
    "two datasets": lambda change: DataLoader(ConcatDataset([TensorDataset(inputs()), TensorDataset(inputs(change))])),
    "samples in a list": lambda change: DataLoader([(row, i) for i, row in enumerate(inputs(change))]),
    "dataset of its own": lambda change: DataLoader(Held(inputs(change))),
    "array": lambda change: DataLoader(Held(numpy.asarray(inputs(change)))),
    "numbers": lambda change: DataLoader(Held([1, 2, 3, 4, 5, 6.0 + change])),
    "own part": lambda change: DataLoader(Held(inputs(), part=int(change))),
    "two loaders": lambda change: together([inputs()], [inputs(change)]),
    "reproducible": lambda change: reproducible(DataLoader(TensorDataset(inputs(change)), batch_size=2)),
    "batch sampler": lambda change: DataLoader(
        TensorDataset(inputs(change)), batch_sampler=BatchSampler(SequentialSampler(range(6)), 2, drop_last=False)
    ),
    "large": lambda change: [torch.full((ROWS, 20), change)],
    "large array": lambda change: DataLoader(Held(numpy.full((6, 200_000), change))),
    "conjugate view": lambda change: [torch.complex(inputs(change), inputs()).conj()],
    "many": lambda change: [*range(99), 99 + change],
}


@pytest.mark.parametrize("name", KNOWN)
def test_same_samples_have_the_same_number(name: str) -> None:
    """Others have another, and nothing is drawn."""
    make, before = KNOWN[name], (torch.get_rng_state(), random.getstate())

    assert whole_data(make(0.0)) == whole_data(make(0.0)) > 0.0
    assert whole_data(make(0.0)) != whole_data(make(1.0)) > 0.0
    assert whole_data(make(0.0)).is_integer()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize(
    "make",
    [
        lambda: sharded(TensorDataset(inputs()), batch_size=2),
        lambda: DataLoader(TensorDataset(inputs()), sampler=DistributedSampler(range(6), 2, 0)),  # type: ignore[arg-type]
        lambda: DataLoader(TensorDataset(inputs()), sampler=WeightedRandomSampler([1.0] * 6, 6)),
        lambda: DataLoader(TensorDataset(inputs()), sampler=RandomSampler(range(6), replacement=True)),
        lambda: DataLoader(TensorDataset(inputs()), batch_size=None),
        lambda: DataLoader(TensorDataset(inputs()), batch_sampler=[[0, 1]]),
        lambda: DataLoader(Stream()),
        lambda: DataLoader(Held(["a.png"] * 6)),
        lambda: DataLoader(Held([("a.png", 0)] * 6, targets=[0] * 6)),
        lambda: DataLoader(Held(numpy.array([{}] * 6))),
        lambda: DataLoader(Held(inputs()[:2], scalar=torch.tensor(1.0))),
        lambda: DataLoader(Held(inputs().to_sparse())),
        lambda: DataLoader(Held(inputs(), state_dict=dict)),
        lambda: DataLoader(range(6)),  # type: ignore[arg-type]
        lambda: DataLoader(numpy.arange(6)),  # type: ignore[arg-type]
        lambda: DataLoader({i: inputs() for i in range(6)}),  # type: ignore[arg-type]
        lambda: DataLoader(Slots()),
        lambda: DataLoader(TensorDataset(inputs().to("meta"))),
        lambda: [object()],
        lambda: iter([1]),
        lambda: type("Own", (list,), {})([1]),
    ],
)
def test_what_cannot_be_told_without_reading_is_not_known(make: Callable[[], Any]) -> None:
    """Nor what a rank reads a share of, or draws at random."""
    assert whole_data(make()) == 0.0
    assert whole_data(make(), [1]) == 0.0


def test_no_data_are_no_data() -> None:
    """As of a training without validation."""
    assert whole_data() == 0.0


@pytest.mark.parametrize(("samples", "drop_last", "twice"), [(6, False, 0), (7, False, 1), (7, True, 0), (5, False, 1)])
def test_samples_that_a_distributed_sampler_gives_twice_are_counted(samples: int, drop_last: bool, twice: int) -> None:
    """In a loader, and in a batch sampler; other loaders give none twice."""
    sampler = DistributedSampler(range(samples), 2, 0, drop_last=drop_last)  # type: ignore[arg-type]

    assert padding(DataLoader(range(samples), sampler=sampler)) == twice  # type: ignore[arg-type]
    batches = BatchSampler(sampler, 2, drop_last=False)
    assert padding(DataLoader(range(samples), batch_sampler=batches)) == twice  # type: ignore[arg-type]
    assert padding([1, 2]) == 0
