"""Feeding: a batch is copied to the device beside what is computed there, and fetched before its turn.

Rules of this file: a training is the same with and without. So a batch is fetched before its turn only
where that draws no random number in this process and moves no place that is saved, and what it raised
is raised when its turn comes. A batch that waits is neither lost nor counted when the training is left:
in this process it goes on waiting, and from a checkpoint it is fetched again, since the place in the
data is counted by the batches that were trained.
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
from .batches import Split, moved, pair, tensors
from .generators import generators_of
from .position import keeps_its_place

Pair = tuple[Any, Any]

# These draw, if at all, for the first index that they give: with workers, when the pass begins.
DRAW_AT_FIRST = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


class Copier(Protocol):
    """What brings batches to the device."""

    def copy(self, batch: Pair) -> tuple[Pair, bool]:
        """Begin to copy the batch; the second says whether that may still be under way."""
        ...

    def wait(self, batch: Pair) -> None:
        """Have what is computed from now on wait for what was copied until now."""
        ...


class Plainly:
    """Copies on the spot."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def copy(self, batch: Pair) -> tuple[Pair, bool]:
        return moved(batch, self.device), False

    def wait(self, batch: Pair) -> None:
        """There is nothing to wait for."""


class SideStream:
    """Copies on a CUDA stream of its own, so that neither waits for the other more than it has to."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, batch: Pair) -> tuple[Pair, bool]:
        if all(tensor.device == self.device for tensor in tensors(batch)):
            return batch, False
        with torch.cuda.stream(self.stream):
            return moved(batch, self.device), True

    def wait(self, batch: Pair) -> None:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in tensors(batch):
            tensor.record_stream(current)  # its memory is not given away before the step is over


class Feed(Iterator[Pair]):
    """The batches of a pass as pairs on the device; with `ahead`, one more than was asked for has been fetched."""

    def __init__(self, batches: Iterator[Any], copier: Copier, *, ahead: bool) -> None:
        self.batches = batches
        self.copier = copier
        self.ahead = ahead
        self.waiting: tuple[Pair, bool] | Exception | None = None

    def __next__(self) -> Pair:
        found = self._fetched() if self.waiting is None else self.waiting
        self.waiting = None
        if isinstance(found, Exception):
            raise found
        batch, under_way = found
        if under_way:
            self.copier.wait(batch)
        if self.ahead:
            self.waiting = self._fetched()
        return batch

    def _fetched(self) -> tuple[Pair, bool] | Exception:
        """The next batch, or what was raised instead, the end of the pass included: it is not its turn yet."""
        try:
            return self.copier.copy(pair(next(self.batches)))
        except Exception as error:
            return error


def fed(copier: Copier | None, loader: Iterable[Any], batches: Iterator[Any]) -> Iterator[Any]:
    """A pass over this loader, fed by the copier if there is one."""
    return batches if copier is None else Feed(batches, copier, ahead=why_not_ahead(loader) is None)


def why_not_ahead(loader: Iterable[Any]) -> str | None:
    """Why a batch of this loader cannot be fetched before its turn without changing the training; None if it can."""
    name = type(loader).__name__
    if type(loader) in (list, tuple):
        return None
    if keeps_its_place(loader):
        return f"the place of the {name} is saved, and would be one too far"
    if not isinstance(loader, DataLoader) or type(loader) is not DataLoader:
        return f"nobody knows what a {name} draws, or does, when a batch is fetched"
    if loader.num_workers == 0:
        return "the samples are read in this process (num_workers=0), and may draw random numbers"
    if any(True for _ in generators_of(loader)):
        return "it has a generator of its own, whose place is saved, and would be one too far"
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if is_reproducible(loader):
        sampler = sampler.sampler  # that which numbers the batches draws nothing
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    if type(sampler) not in DRAW_AT_FIRST:
        return f"nobody knows what a {type(sampler).__name__} draws when it is asked for a batch"
    return None


def copier_for(device: torch.device, ahead: bool | None, train: Iterable[Any], split: Split | None) -> Copier | None:
    """What feeds a training on this device; None where batches are taken as they come.

    Args:
        device: where the model is.
        ahead: whether it is wanted; None for CUDA only.
        train: the training data.
        split: the user's, which may draw random numbers, and is left to its turn.

    Raises:
        WorkloadError: it is wanted, and would change the training.
    """
    if ahead:
        why = "a split of one's own may draw random numbers" if split is not None else why_not_ahead(train)
        if why is not None:
            raise WorkloadError(f"ahead=True, but no batch of train can be fetched before its turn: {why}")
    if ahead is False or split is not None or (ahead is None and device.type != "cuda"):
        return None
    return SideStream(device) if device.type == "cuda" else Plainly(device)
