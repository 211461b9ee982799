"""Prefetching: a batch is fetched, and copied to the device, while the batch before it is trained.

Rule of this file: a training is the same with and without. So a batch is prefetched only if that draws
no random number in this process and moves no position that is saved. An exception in the prefetched
batch is raised when that batch is due. When the training is suspended, a prefetched batch is neither
lost nor counted: this process keeps it, and after a restore it is fetched again, since the position in
the data counts trained batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..core.errors import WorkloadError
from .augmentation import is_reproducible
from .batches import Split, holds_hidden_tensors, pair, tensors, to_device
from .generators import order_generators
from .position import is_stateful
from .sharded import ShardedBatches

Pair = tuple[Any, Any]

# If these samplers draw at all, it is for their first index: with workers, when the pass starts.
DRAWS_AT_START = (
    *(SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler),
    ShardedBatches,
)


class Copier(Protocol):
    """Copies batches to the device."""

    def copy(self, batch: Pair) -> tuple[Pair, bool]:
        """Start to copy the batch. The answer is the copy, and whether copying may still be under way."""
        ...

    def wait(self, batch: Pair) -> None:
        """Make all later computation wait for the copies that were started."""
        ...


class SyncCopier:
    """Copies a batch before `copy` returns.

    Attributes:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def copy(self, batch: Pair) -> tuple[Pair, bool]:
        return to_device(batch, self.device), False

    def wait(self, batch: Pair) -> None:
        """Does nothing: no copy is under way."""


class CudaStreamCopier:
    """Copies on a CUDA stream of its own, so that copying and computing overlap.

    Attributes:
        device: where to.
        stream: the stream of the copies.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, batch: Pair) -> tuple[Pair, bool]:
        if holds_hidden_tensors(batch):  # which `wait` could not hold on to: copied where they are used
            return to_device(batch, self.device), False
        if all(tensor.device == self.device for tensor in tensors(batch)):
            return batch, False
        with torch.cuda.stream(self.stream):
            return to_device(batch, self.device), True

    def wait(self, batch: Pair) -> None:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in tensors(batch):
            tensor.record_stream(current)  # so that its memory is not reused before the step is over


class Prefetcher(Iterator[Pair]):
    """The batches of a pass as pairs on the device.

    Attributes:
        batches: the pass.
        copier: copies each batch.
        ahead: whether one batch more than was asked for is fetched.
        next_batch: the prefetched batch and whether its copy is under way; the exception that it raised
            instead, the end of the pass included; None if nothing is prefetched.
    """

    def __init__(self, batches: Iterator[Any], copier: Copier, *, ahead: bool) -> None:
        self.batches = batches
        self.copier = copier
        self.ahead = ahead
        self.next_batch: tuple[Pair, bool] | Exception | None = None

    def __next__(self) -> Pair:
        fetched = self._fetch() if self.next_batch is None else self.next_batch
        self.next_batch = None
        if isinstance(fetched, Exception):
            raise fetched
        batch, under_way = fetched
        if under_way:
            self.copier.wait(batch)
        if self.ahead:
            self.next_batch = self._fetch()
        return batch

    def _fetch(self) -> tuple[Pair, bool] | Exception:
        """The next batch, or its exception: the caller raises it when the batch is due."""
        try:
            return self.copier.copy(pair(next(self.batches)))
        except Exception as error:
            return error


def prefetched(copier: Copier | None, loader: Iterable[Any], batches: Iterator[Any]) -> Iterator[Any]:
    """The batches of a pass over this loader, through a `Prefetcher` if there is a copier."""
    return batches if copier is None else Prefetcher(batches, copier, ahead=prefetch_obstacle(loader) is None)


def prefetch_obstacle(loader: Iterable[Any]) -> str | None:
    """Why prefetching a batch of this loader could change the training, as part of a sentence; None if it cannot."""
    name = type(loader).__name__
    if type(loader) in (list, tuple):
        return None
    if is_stateful(loader):
        return f"the place of the {name} is saved, and would be one too far"
    if not isinstance(loader, DataLoader) or type(loader) is not DataLoader:
        return f"it is unknown what a {name} draws, or does, when a batch is fetched"
    if loader.num_workers == 0:
        return "the samples are read in this process (num_workers=0), and may draw random numbers"
    if order_generators(loader):
        return "it has a generator of its own, whose place is saved, and would be one too far"
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if is_reproducible(loader):
        sampler = sampler.sampler  # the one around it, which adds the seeds, draws nothing
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    if type(sampler) not in DRAWS_AT_START:
        return f"it is unknown what a {type(sampler).__name__} draws when it is asked for a batch"
    return None


def copier_for(device: torch.device, ahead: bool | None, train: Iterable[Any], split: Split | None) -> Copier | None:
    """The copier for a training on this device; None where batches are not prefetched.

    Args:
        device: where the model is.
        ahead: whether to prefetch; None for on CUDA only.
        train: the training data.
        split: the user's own, which may draw random numbers, so that its batches are not prefetched.

    Raises:
        WorkloadError: `ahead` is True, and prefetching could change the training.
    """
    if ahead:
        why = "a split of one's own may draw random numbers" if split is not None else prefetch_obstacle(train)
        if why is not None:
            raise WorkloadError(f"ahead=True, but no batch of train can be fetched before its turn: {why}")
    if ahead is False or split is not None or (ahead is None and device.type != "cuda"):
        return None
    return CudaStreamCopier(device) if device.type == "cuda" else SyncCopier(device)
