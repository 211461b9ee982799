"""Which random generators a pass over a loader follows from, as far as the type of the loader says.

Rule of this file: it only looks. A loader of a type that is not named here may draw from any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from .generators import NO_GENERATORS, Generators

_OF_TORCH = {RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler}


def at_pass_start(loader: object, own: Iterable[Any]) -> Generators:
    """The states, now, of those generators that a pass follows from which begins now.

    Args:
        loader: what the pass is over.
        own: the generators beside those of the whole process.
    """
    if is_sequence(loader):
        return NO_GENERATORS
    return Generators.of_torch(own) if _draws_from_torch(loader) else Generators.now(own)


def is_sequence(loader: object) -> bool:
    """Whether the loader is a list or a tuple with the batches: a pass over it runs no code that could draw.

    >>> class Shuffled(list):
    ...     def __iter__(self): ...
    >>> is_sequence([1, 2]), is_sequence(Shuffled([1, 2]))
    (True, False)
    """
    return isinstance(loader, (list, tuple)) and type(loader).__iter__ in (list.__iter__, tuple.__iter__)


def _draws_from_torch(loader: object) -> bool:
    """Whether a pass begins with draws of torch alone. What samples draw when they are read is no part of its begin."""
    if type(loader) is not DataLoader or loader.num_workers or isinstance(loader.dataset, IterableDataset):
        return False
    order = loader.batch_sampler
    if order is not None and type(order) is not BatchSampler:
        return False
    return type(loader.sampler if order is None else order.sampler) in _OF_TORCH
