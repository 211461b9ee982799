"""What a loader reads whole, as a number: ranks that have the same read the same samples.

Rule of this file: no sample is read, since that may draw random numbers or open files. What a dataset holds in memory
is looked at; where its samples come from elsewhere, nothing is known.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from ..core.spread import spread
from .augmentation import is_reproducible
from .layers import Combined

_ALL = 4 * 2**20  # bytes of a tensor that are looked at; of a larger one some rows are
_ROWS = 64
_ITEMS = 16
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class _UnknownError(Exception):
    """What the samples are cannot be told without reading them."""


def whole_data(*loaders: object) -> float:
    """A number of 48 bits for what these loaders read; 0 where one reads a share or that is not known.

    >>> inputs = torch.arange(6.0)
    >>> whole_data(DataLoader(TensorDataset(inputs), shuffle=True)) == whole_data(DataLoader(TensorDataset(inputs)))
    True
    >>> whole_data(DataLoader(TensorDataset(inputs))) == whole_data(DataLoader(TensorDataset(inputs + 1)))
    False
    """
    digest = hashlib.blake2b(digest_size=6)
    try:
        for loader in loaders:
            _add_loader(digest, loader)
    except _UnknownError:
        return 0.0
    return float(int.from_bytes(digest.digest(), "big") or 1) if loaders else 0.0


def padding(loader: object) -> int:
    """How many samples a DistributedSampler gives twice, so that all ranks have as many."""
    for sampler in (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)):
        if isinstance(sampler, DistributedSampler):
            return max(0, sampler.total_size - len(sampler.dataset))  # type: ignore[arg-type]
    return 0


def _add_loader(digest: Any, loader: Any) -> None:
    if isinstance(loader, Combined):
        for inner in loader.loaders:
            _add_loader(digest, inner)
    elif type(loader) in (list, tuple):
        _add(digest, loader)
    elif type(loader) is DataLoader:
        dataset, batches = loader.dataset, loader.batch_sampler
        if is_reproducible(loader):
            dataset, batches = dataset.dataset, loader.sampler.sampler  # type: ignore[attr-defined]
        if not _reads_all(batches):
            raise _UnknownError
        _add_dataset(digest, dataset)
    else:
        raise _UnknownError


def _reads_all(batches: object) -> bool:
    """Whether each sample of the dataset is in one of the batches."""
    sampler = batches.sampler if type(batches) is BatchSampler else None
    each_once = type(sampler) is RandomSampler and not sampler.replacement
    return type(sampler) is SequentialSampler or each_once


def _add_dataset(digest: Any, dataset: Any) -> None:
    if hasattr(dataset, "state_dict"):
        raise _UnknownError  # what it holds changes while it is trained with, as rollouts do
    if isinstance(dataset, TensorDataset):
        _add(digest, dataset.tensors)
    elif isinstance(dataset, Subset):
        _add(digest, list(dataset.indices))
        _add_dataset(digest, dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            _add_dataset(digest, part)
    elif type(dataset) in (list, tuple):
        _add(digest, dataset)
    else:
        _add_attributes(digest, dataset)


def _add_attributes(digest: Any, dataset: Any) -> None:
    """What a dataset of one's own holds: what has an item for each sample, and numbers and texts."""
    if not hasattr(dataset, "__dict__"):  # a range, an array, a class with slots
        raise _UnknownError
    samples = len(dataset)
    held = {name: value for name, value in vars(dataset).items() if _length(value) == samples}
    if not held or any(map(_names_files, held.values())):
        raise _UnknownError
    plain = {name: value for name, value in vars(dataset).items() if isinstance(value, _PLAIN)}
    for name, value in sorted({**plain, **held}.items()):
        digest.update(name.encode())
        _add(digest, value)


def _length(value: object) -> int | None:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        return None
    try:
        return len(value)
    except TypeError:  # a tensor without dimensions
        return None


def _names_files(value: object) -> bool:
    """Whether the items may be paths, of which another machine has others by the same name."""
    if isinstance(value, (list, tuple)):
        return any(_names_files(item) or isinstance(item, (str, bytes)) for item in _some(value, _ITEMS))
    return False


def _add(digest: Any, value: Any) -> None:
    """Take a value into the digest: all of a small one, and some of a large one.

    Raises:
        _UnknownError: it is of another kind.
    """
    if isinstance(value, _PLAIN):
        digest.update(repr(value).encode())
    elif isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.is_meta:
            raise _UnknownError
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        for row in _rows(value.detach(), value.element_size()):
            digest.update(
                row.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    elif type(value).__name__ == "ndarray" and value.dtype.kind in "biufc":
        digest.update(f"{value.dtype} {value.shape}".encode())
        for row in _rows(value, value.itemsize):
            digest.update(row.tobytes())
    elif isinstance(value, Mapping):
        _add(digest, [*value.items()])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} items".encode())
        for item in _some(value, _ITEMS):
            _add(digest, item)
    else:
        raise _UnknownError


def _rows(array: Any, item_size: int) -> Iterable[Any]:
    """All of a tensor or array, or of a large one the beginnings of some rows."""
    if math.prod(array.shape) * item_size <= _ALL:
        return [array]
    return (row.reshape(-1)[: _ALL // _ROWS // item_size] for row in _some(array, _ROWS))


def _some(items: Sequence[Any], most: int) -> list[Any]:
    """All items, or of many some that are spread over them."""
    return [items[i] for i in spread(len(items), most)]
