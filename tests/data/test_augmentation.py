"""What `reproducible` leaves as it was, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from fsm_train import WorkloadError
from fsm_train.data import reproducible
from tests.models import diabetes


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def test_a_stream_is_refused() -> None:
    """Its samples have no index to be asked for."""
    with pytest.raises(WorkloadError, match="samples of a stream have no index"):
        reproducible(DataLoader(Stream(), 2))


def _epochs(loader: DataLoader[Any], *samplers: Any) -> list[list[torch.Tensor]]:
    """The targets of two epochs, batch by batch; the samplers are told which one it is."""
    found = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        found.append([targets for _, targets in loader])
    return found


def test_a_sampler_is_told_the_epoch() -> None:
    """One that shuffles by epoch, as in distributed training, gives the order that it gives alone."""
    data = diabetes()
    alone = DistributedSampler(data, num_replicas=2, rank=0)
    plain = _epochs(DataLoader(data, 64, sampler=alone), alone)
    inside = DistributedSampler(data, num_replicas=2, rank=0)
    loader = reproducible(DataLoader(data, 64, sampler=inside))
    again = _epochs(loader, loader.sampler)

    for ours, theirs in zip(again, plain, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(again[0][0], again[1][0])


def test_sizes_are_those_of_the_loader() -> None:
    """Of the samples, and of the batches."""
    plain = DataLoader(diabetes(), 64)
    loader = reproducible(plain)

    assert (len(loader), len(loader.dataset)) == (len(plain), len(plain.dataset))  # type: ignore[arg-type]
