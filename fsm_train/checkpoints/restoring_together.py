"""One checkpoint that all ranks of a training restore: rank 0 chooses it, and it is damaged for all if it is for one.

Rule of this file: a checkpoint is tried in two steps, reading it and restoring it, and after each all ranks know
whether all could. So all continue from the same one, or none does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import CheckpointError, NoCheckpointError
from ..encoding import Json
from ..worlds.disagreement import PeerError
from ..worlds.rows import Topic
from .manifest import Checkpoint, manifest_of
from .peers import Peers

T = TypeVar("T")
U = TypeVar("U")

Chosen = Callable[[], Checkpoint]
"""Gives the checkpoint, or says that it is damaged for this rank."""

_ERRORS = {kind.__name__: kind for kind in (CheckpointError, NoCheckpointError)}


def given(checkpoint: Checkpoint) -> Chosen:
    """This checkpoint, as one that was chosen."""
    return lambda: checkpoint


class Trial:
    """A checkpoint that all ranks try to restore.

    Args:
        peers: the ranks; None for a training on one.

    Attributes:
        rank, ranks: the number of this one, and how many there are.
    """

    def __init__(self, peers: Peers | None) -> None:
        self._peers = peers
        self.rank, self.ranks = (0, 1) if peers is None else (peers.rank, peers.ranks)

    def all_could(self, do: Callable[[], T], tell: Callable[[T], Json] = lambda done: None) -> tuple[T, list[Any]]:
        """Do this on each rank. What it gives here, and what the ranks tell of it.

        Raises:
            CheckpointError: on all ranks, if the checkpoint is damaged for one.
            PeerError: another rank failed otherwise, and this one did not.
            Exception: of `do`.
        """
        if self._peers is None:
            done = do()
            return done, [tell(done)]
        try:
            done = do()
        except CheckpointError as error:
            told = self._peers.tell(Topic.RESTORE, {"damaged": str(error)})
            own: Exception | None = error
        except Exception as error:
            self._peers.tell(Topic.RESTORE, {"failed": f"{type(error).__name__}: {error}"})
            raise
        else:
            told, own = self._peers.tell(Topic.RESTORE, {"told": tell(done)}), None
        for rank, other in enumerate(told):
            if "failed" in other:
                raise PeerError.of(rank, other["failed"])
        if damages := dict.fromkeys(other["damaged"] for other in told if "damaged" in other):
            raise CheckpointError("; ".join(damages)) from own
        return done, [other["told"] for other in told]


def lead_restoring(peers: Peers, choose: Callable[[Callable[[Chosen], T]], U], attempt: Callable[[Chosen], T]) -> U:
    """Rank 0's part: have all ranks attempt the checkpoints that are chosen, until one is good.

    Raises:
        CheckpointError: on all ranks, if none is.
    """

    def attempted(chosen: Chosen) -> T:
        checkpoint = chosen()
        peers.tell(Topic.RESTORE, {"path": str(checkpoint.path.absolute()), "number": checkpoint.number})
        return attempt(chosen)

    try:
        return choose(attempted)
    except CheckpointError as error:
        peers.tell(Topic.RESTORE, {"error": type(error).__name__, "text": str(error)})
        raise


def follow_restoring(peers: Peers, attempt: Callable[[Chosen], T]) -> T:
    """The part of another rank than 0: attempt the checkpoints that rank 0 says, until one is good.

    Raises:
        CheckpointError: none is good.
    """
    while True:
        told = peers.tell(Topic.RESTORE, None)[0]
        if "error" in told:
            raise _ERRORS[told["error"]](told["text"])
        try:
            return attempt(partial(_of_number, Path(told["path"]), told["number"]))
        except CheckpointError:
            continue  # all ranks know, and rank 0 says which is next


def _of_number(path: Path, number: int) -> Checkpoint:
    checkpoint = manifest_of(path)
    if checkpoint.number != number:
        raise CheckpointError(f"{path} is another checkpoint than rank 0 has there: the folder is not the same on all")
    return checkpoint
