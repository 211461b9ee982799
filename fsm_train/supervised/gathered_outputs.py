"""The outputs of all ranks as those of one dataset, in its order.

Rule of this file: only a loader of `sharded` says which samples a rank has, so only its outputs are gathered.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from ..data.loaders import ordered_by
from .joining import join
from .training import Training


@attrs.frozen
class PredictedBatch:
    """The output for a rank's part of a batch.

    Attributes:
        indices: of its samples in the dataset.
        output: on the CPU.
    """

    indices: Sequence[Any]
    output: Any


@contextlib.contextmanager
def known_order(loader: Any) -> Iterator[list[Sequence[Any]]]:
    """The indices of each batch that a pass over this loader of `sharded` gives, if it starts in this context."""
    by_itself = loader.batch_sampler is None  # that of `reproducible`, which adds a seed to each batch
    order = [*(loader.sampler if by_itself else loader.batch_sampler)]
    with ordered_by(loader, order):
        yield [indices for _, indices in order] if by_itself else order


def gathered(work: Training, own: Sequence[PredictedBatch], nothing: object) -> Any:
    """What all ranks predicted, joined and in the order of the dataset; `nothing` if none of them had a batch.

    Raises:
        PeerError: another rank failed.
    """
    parts = [own] if work.ranks is None else work.ranks.exchange.gather(own)
    batches = [batch for of_rank in parts for batch in of_rank]
    numbers = [_number(index) for batch in batches for index in batch.indices]
    if not batches:
        return nothing
    joined = join([batch.output for batch in batches])
    order = [number for number in numbers if number is not None]
    return joined if len(order) < len(numbers) else _in_order(joined, torch.argsort(torch.tensor(order), stable=True))


def _number(index: Any) -> int | None:
    """The index as a number, also one of numpy or torch, as samplers give them; None of a key of another kind."""
    try:
        return operator.index(index)
    except TypeError:
        return None


def _in_order(part: Any, order: torch.Tensor) -> Any:
    """The rows of each tensor that has one for each sample, in this order."""
    if isinstance(part, torch.Tensor):
        return part[order] if part.dim() and len(part) == len(order) else part
    if isinstance(part, Mapping):
        return {name: _in_order(each, order) for name, each in part.items()}
    if isinstance(part, tuple):
        items = [_in_order(each, order) for each in part]
        return type(part)(*items) if hasattr(part, "_fields") else tuple(items)
    return part
