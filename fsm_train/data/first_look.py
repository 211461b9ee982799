"""A look at one validation batch before the training begins, where that costs and changes nothing.

Rule of this file: a loader is not iterated, since that draws random numbers. What it cannot look at that way is found
at the first validation.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from .generators import Generators, generators_of
from .sharded import ShardedBatches


@contextmanager
def first_look(loader: object) -> Iterator[object]:
    """Give the first batch of a list or tuple, or one made of the first sample of a DataLoader; None if none is given.

    A DataLoader is looked at if it reads its samples by index in this process, from a dataset that has nothing but
    plain data and draws from no generator of its own. Generators and the dataset's attributes are then put back.

    >>> with first_look([(1, 2), (3, 4)]) as batch:
    ...     print(batch)
    (1, 2)
    """
    generators = Generators.now(layer.part for layer in generators_of(valid=loader))
    parts = _parts(getattr(loader, "dataset", ()))
    datasets = [(part, dict(vars(part))) for part in parts if hasattr(part, "__dict__")]
    lengths = [(value, len(value)) for _, before in datasets for value in before.values() if type(value) is list]
    try:
        if type(loader) in (list, tuple):
            batch = loader[0]  # type: ignore[index]
            yield copy.copy(batch) if type(batch) in (dict, list) else batch  # a `split` may take it apart
        else:
            yield _one_sample(loader) if _is_plain(loader) else None
    finally:
        for part, before in datasets:
            vars(part).clear()
            vars(part).update(before)
        for value, length in lengths:
            del value[length:]
        generators.put_back()


def _one_sample(loader: Any) -> object:
    """A batch of the first sample; None if it cannot be made, which the first validation then shows."""
    try:
        sample = loader.dataset[0]
        return loader.collate_fn(sample if loader.batch_sampler is None else [sample])
    except Exception:  # the user's own; raised again, with its place, where the data are read
        return None


def _is_plain(loader: object) -> bool:
    if type(loader) is not DataLoader or loader.num_workers > 0 or isinstance(loader.dataset, IterableDataset):
        return False
    if type(loader.batch_sampler) not in (BatchSampler, ShardedBatches, type(None)):
        return False
    if not inspect.isroutine(loader.collate_fn):
        return False
    return all(map(_is_plain_dataset, _parts(loader.dataset)))


def _parts(dataset: Any) -> Iterator[Any]:
    """The dataset, and those inside of it."""
    yield dataset
    if isinstance(dataset, Subset):
        yield from _parts(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _parts(part)


def _is_plain_dataset(dataset: object) -> bool:
    read = getattr(type(dataset), "__getitem__", None)
    functions = [read, *(value for value in getattr(dataset, "__dict__", {}).values() if inspect.isfunction(value))]
    return all(map(_is_data, getattr(dataset, "__dict__", {}).values())) and not any(map(_draws_elsewhere, functions))


def _is_data(value: object) -> bool:
    """Whether an attribute is one that reading a sample leaves as it is, or that can be put back."""
    plain = (torch.Tensor, str, bytes, int, float, type(None), list, tuple, range, Mapping, Dataset)
    return isinstance(value, plain) or inspect.isroutine(value) or type(value).__name__ == "ndarray"


def _draws_elsewhere(function: object) -> bool:
    """Whether a function uses a generator that is a global variable, or one of the function around it."""
    if not inspect.isfunction(function):
        return False
    used = inspect.getclosurevars(function)
    return any(_is_generator(value) for value in (*used.globals.values(), *used.nonlocals.values()))


def _is_generator(value: object) -> bool:
    return isinstance(value, random.Random) or type(value).__name__ in ("Generator", "RandomState")
