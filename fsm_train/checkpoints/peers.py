"""What saving and restoring ask of the other ranks of a training. Torch-free.

Rule of this file: what follows from what the ranks told each other is the same on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..encoding import Json
from ..worlds.rows import Topic


class Peers(Protocol):
    """The ranks of a training, as one of them sees them.

    Attributes:
        rank, ranks: the number of this one, and how many there are.
        lost: whether they no longer meet, after a failure.
    """

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    @property
    def lost(self) -> bool: ...

    def tell(self, topic: Topic, own: Json) -> Sequence[Any]:
        """Give a value, and get that of each rank, in their order. What is empty is None.

        Raises:
            WorkloadError: a rank failed, or is elsewhere. They no longer meet.
        """
        ...

    def beside(self) -> Peers:
        """The same ranks, for what a thread does beside the training. All ranks ask for it at the same place."""
        ...

    def own_parts(self, parts: dict[str, Any]) -> dict[str, Any]:
        """What of these parts of a training belongs to this rank alone, for `with_own_parts`."""
        ...


def failure_of(error: Exception) -> dict[str, Json]:
    """What a rank tells the others of what it could not do."""
    return {"failed": failure_text(error)}


def failure_text(error: BaseException) -> str:
    """What went wrong, in words: some errors have none.

    >>> failure_text(OSError("the disk is full")), failure_text(MemoryError())
    ('the disk is full', 'MemoryError')
    """
    return str(error) or type(error).__name__


def failures(told: Sequence[Mapping[str, Any] | None]) -> str:
    """What ranks could not do, in words; empty if all could.

    >>> failures([None, {"failed": "the disk is full"}])
    'rank 1: the disk is full'
    """
    return "; ".join(f"rank {rank}: {own['failed']}" for rank, own in enumerate(told) if own and "failed" in own)


def common_notes(of_ranks: Sequence[Sequence[str] | None]) -> tuple[str, ...]:
    """The notes of all ranks, each once. One that not all have says whose it is.

    >>> common_notes([["a stream"], ["a stream", "a handle"]])
    ('a stream', 'on rank 1, a handle')
    """
    given = [notes or () for notes in of_ranks]
    found: dict[str, None] = {}
    for rank, notes in enumerate(given):
        for note in notes:
            found[note if all(note in others for others in given) else f"on rank {rank}, {note}"] = None
    return tuple(found)
