"""Batches of which each needs all ranks: those that gather a sharded model for them.

Rule of this file: one exchange for each batch, and a rank without a further one stands by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ..worlds.rows import Topic

T = TypeVar("T")


def in_step(work: Any, batches: Iterable[T]) -> Iterator[T]:
    """These batches; of a sharded model, the end comes when no rank has a further one.

    Args:
        work: a `Supervised`. Between two of the batches the model has done one forward pass, for the batch that is in
            its `inputs` and `target`.
        batches: of this rank.

    Raises:
        WorkloadError: this rank has no batch to stand by with.
        PeerError: another rank failed, or is gone.
        DisagreementError: another rank is elsewhere.
    """
    work.find_shards()
    if not work.shards or work.ranks is None:
        yield from batches
        return
    try:
        for batch in batches:
            _is_any_left(work, True)
            yield batch
            work.keep_batch()
        while _is_any_left(work, False):
            work.stand_by()
    finally:
        work.reshard()


def _is_any_left(work: Any, own: bool) -> bool:
    return any(values[0] for values in work.ranks.meeting(work).meet(Topic.TOGETHER, float(own)))
