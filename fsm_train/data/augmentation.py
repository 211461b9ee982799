"""Loaders whose batches depend on (seed, epoch, batch) alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..core.errors import WorkloadError
from .generators import Generators, seed_all
from .loaders import settings_of
from .own_rank import own_rank


def reproducible(loader: DataLoader[Any], *, seed: int = 0) -> DataLoader[Any]:
    """The same loader with reproducible augmentation: the same for any number of workers, and after a resume.

    Before the samples of a batch are read and collated, the generators of Python, NumPy and torch are
    seeded from (seed, epoch, batch), and on another rank than the first from its number too, and restored afterwards.
    The loader's sampler still decides the order of the samples.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> data = TensorDataset(torch.zeros(8, 3), torch.zeros(8, 1))
    >>> loader = reproducible(DataLoader(data, batch_size=4, shuffle=True), seed=0)
    >>> len(loader)
    2

    Args:
        loader: over a map-style dataset.
        seed: of the augmentation.

    Raises:
        WorkloadError: the dataset is an iterable one, whose samples have no index.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise WorkloadError("reproducible takes a loader over a map-style dataset: samples of a stream have no index")
    batched = loader.batch_sampler is not None
    return DataLoader(
        _SeededDataset(loader.dataset, loader.collate_fn, batched=batched),
        batch_size=None,
        sampler=_WithSeeds(loader.batch_sampler if batched else loader.sampler, seed),
        collate_fn=_identity,
        **settings_of(loader),
        persistent_workers=loader.persistent_workers,
    )


def is_reproducible(loader: object) -> bool:
    """Whether `reproducible` made this loader."""
    return isinstance(getattr(loader, "dataset", None), _SeededDataset)


def _identity(batch: Any) -> Any:
    return batch


class _WithSeeds(Sampler[tuple[int, Any]]):
    """Gives each item of the sampler together with a seed from (seed, epoch, batch)."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.generator = getattr(sampler, "generator", None) or getattr(
            getattr(sampler, "sampler", None), "generator", None
        )
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        for inner in (self.sampler, getattr(self.sampler, "sampler", None)):
            if set_epoch := getattr(inner, "set_epoch", None):
                set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        rank, _ = getattr(self.sampler, "place", own_rank())
        for batch, chosen in enumerate(self.sampler):
            yield Random(f"{self.seed}/{self.epoch}/{batch}{f'/{rank}' if rank else ''}").getrandbits(63), chosen

    def __len__(self) -> int:
        return len(self.sampler)


class _SeededDataset(Dataset[Any]):
    """Reads and collates a whole batch, with the generators seeded for this batch."""

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], *, batched: bool) -> None:
        self.dataset = dataset
        self.collate = collate
        self.batched = batched

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, Any]) -> Any:
        seed, chosen = item
        with _seeded(seed):
            samples = [self.dataset[index] for index in chosen] if self.batched else self.dataset[chosen]
            return self.collate(samples)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    before = Generators.now()
    seed_all(seed)
    try:
        yield
    finally:
        before.put_back()
