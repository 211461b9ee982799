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

from fsm_train import Supervised
from fsm_train.data.known_sizes import known_sizes

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
    ],
)
def test_known_sizes_are_those_that_come(settings: Any) -> None:
    """Or nothing is known, as of a batch sampler that was made elsewhere."""
    loader = DataLoader(DATA, **settings)
    sizes = [len(inputs) for inputs, _ in loader]

    known = known_sizes(loader)
    if known is None:
        assert "batch_sampler" in settings
    else:
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
    ],
    ids=["list", "sampler", "collate", "single samples", "no batch", "stream"],
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
