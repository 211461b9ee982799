"""What is known of a pass over a loader before it begins.

Rule of this file: other ranks rely on it, so what could turn out otherwise is not known.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate

from .sharded import ShardedBatches


def known_sizes(loader: object) -> tuple[int, float, float] | None:
    """The batches of a pass, what each counts, and what the last one counts; None where that is not known.

    It is known of a DataLoader of samples that are stacked by torch, in an order that torch draws, and of a rank's
    share of one. A sampler or a collate function of one's own may give others than its length says.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> known_sizes(DataLoader(TensorDataset(torch.zeros(10, 3)), batch_size=4))
    (3, 4, 2)
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return None
    batches = loader.batch_sampler
    share = batches if type(batches) is ShardedBatches else None
    inner: Any = batches if share is None else share.batches
    plain = loader.collate_fn is default_collate and type(inner) is BatchSampler
    if not plain or not type(inner.sampler).__module__.startswith("torch.utils.data."):
        return None
    if share is not None:
        return share.sizes()
    number, size = len(loader), inner.batch_size
    if number == 0:
        return None
    return number, size, size if inner.drop_last else len(inner.sampler) - (number - 1) * size
