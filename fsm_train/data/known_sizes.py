"""What is known of a pass over a loader before it begins.

Rule of this file: other ranks rely on it, so what could turn out otherwise is not known.
"""

from __future__ import annotations

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate


def known_sizes(loader: object) -> tuple[int, float, float] | None:
    """The batches of a pass, what each counts, and what the last one counts; None where that is not known.

    It is known of a DataLoader of samples that are stacked by torch, in an order that torch draws: a sampler or a
    collate function of one's own may give others than its length says.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> known_sizes(DataLoader(TensorDataset(torch.zeros(10, 3)), batch_size=4))
    (3, 4, 2)
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return None
    plain = loader.collate_fn is default_collate and type(loader.batch_sampler) is BatchSampler
    if not plain or not type(loader.sampler).__module__.startswith("torch.utils.data."):
        return None
    batches, size = len(loader), loader.batch_size
    if size is None or batches == 0:
        return None
    samples = len(loader.sampler)  # type: ignore[arg-type]
    return batches, size, size if loader.drop_last else samples - (batches - 1) * size
