"""What is known of a pass over a loader before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from fsm_train import Evaluation, Supervised, sharded
from fsm_train.data.known_sizes import known_sizes
from fsm_train.data.sharded import ShardedBatches

DATA = TensorDataset(torch.zeros(10, 3), torch.zeros(10, 1))


class Own(Sampler[int]):
    """Says five and gives three."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.zeros(4, 3))

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 4},
        {"batch_size": 4, "drop_last": True},
        {"batch_size": 5, "shuffle": True},
        {"batch_size": 3, "sampler": RandomSampler(DATA, replacement=True, num_samples=7)},
        {"batch_size": 2, "sampler": DistributedSampler(DATA, num_replicas=4, rank=1)},
        {"batch_size": 16},
        {"batch_sampler": BatchSampler(SequentialSampler(DATA), 4, drop_last=False)},
        {"batch_sampler": ShardedBatches(BatchSampler(SequentialSampler(DATA), 4, drop_last=False), 0)},
        {"batch_sampler": ShardedBatches(BatchSampler(RandomSampler(DATA), 4, drop_last=False), 0, rank=1, ranks=2)},
        {"batch_sampler": ShardedBatches(BatchSampler(RandomSampler(DATA), 6, drop_last=True), 0, rank=1, ranks=3)},
        {
            "batch_sampler": ShardedBatches(
                BatchSampler(SequentialSampler(DATA), 3, drop_last=False), 0, rank=2, ranks=3
            )
        },
        {
            "batch_sampler": ShardedBatches(
                BatchSampler(SequentialSampler(DATA), 2, drop_last=False), 0, rank=1, ranks=3, per_rank=True
            )
        },
    ],
)
def test_known_sizes_are_those_that_come(settings: Any) -> None:
    """So of a rank's share, where the batch of all is shared out evenly."""
    loader = DataLoader(DATA, **settings)
    sizes = [len(inputs) for inputs, _ in loader]

    known = known_sizes(loader)
    assert known is not None
    batches, each, last = known
    assert [*[each] * (batches - 1), last] == sizes


@pytest.mark.parametrize(
    "loader",
    [
        [(torch.zeros(4, 3), torch.zeros(4, 1))],
        DataLoader(DATA, batch_size=2, sampler=Own()),
        DataLoader(DATA, batch_size=2, collate_fn=lambda samples: samples[:1]),
        DataLoader(DATA, batch_size=None),
        DataLoader(DATA, batch_size=16, drop_last=True),
        DataLoader(Stream(), batch_size=2),
        sharded(DATA, batch_size=5, rank=0, ranks=2),
        sharded(DATA, batch_size=20, drop_last=True, rank=0, ranks=2),
        sharded(DataLoader(DATA, batch_size=2, sampler=Own())),
        DataLoader(DATA, batch_sampler=[[0, 1], [2]]),
    ],
    ids=[
        *("list", "sampler", "collate", "single samples", "no batch", "stream"),
        *("uneven shares", "no share", "share of a sampler", "batch sampler"),
    ],
)
def test_what_may_turn_out_otherwise_is_not_known(loader: Any) -> None:
    """The ranks then ask each other for each batch."""
    assert known_sizes(loader) is None


def test_workload_knows_of_its_loader_unless_its_owner_counts() -> None:
    """What a batch counts is then no number of samples."""
    model = nn.Linear(3, 1)
    given: Any = (model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), DataLoader(DATA, batch_size=4))

    assert Supervised(*given).known_sizes == (3, 4, 2)
    assert Supervised(*given, samples=lambda inputs, target: 1.0).known_sizes is None
    assert Supervised(*given, split=lambda batch: (batch[0][:1], batch[1][:1])).known_sizes is None


def test_sizes_of_a_validation_are_known_of_one_that_is_always_carried_out() -> None:
    """Which of several are due, and how long they take together, is not known before."""
    model, loader = nn.Linear(3, 1), DataLoader(DATA, batch_size=4)
    given: Any = (model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), loader)

    assert Supervised(*given, valid=loader).known_valid_sizes == (3, 4, 2)
    assert Supervised(*given, valid={"clean": loader}).known_valid_sizes == (3, 4, 2)
    assert Supervised(*given).known_valid_sizes is None
    assert Supervised(*given, valid={"clean": loader, "noisy": loader}).known_valid_sizes is None
    assert Supervised(*given, valid=Evaluation(loader, every=2)).known_valid_sizes is None
    assert Supervised(*given, valid=loader, samples=lambda inputs, target: 1.0).known_valid_sizes is None
