"""How the ranks of a process group exchange rows, for `Agreed`.

Rule of this file: it carries rows and says who failed. What a row means is in `worlds/rows.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from ..checkpoints.peers import Peers
from ..core.checks import check_positive
from ..core.errors import WorkloadError
from ..worlds.disagreement import PeerError
from ..worlds.rows import PLACES, WIDTH, Topic
from .leaving import tell_if_raised
from .presence import Presence
from .told_beside import ToldBeside

_FAILED = "failed"
_shared: dict[float, GlooExchange] = {}
_GRACE = 2.0
"""Seconds in which ranks whose wait is over say where they waited, and in which all of a process ends."""

_GONE = "its process is gone, without a word: it was killed, or its script ended"
_TIMED_OUT = "Timed out waiting"
_OF_GLOO = ("gloo/transport", "Connection closed by peer", _TIMED_OUT)
"""What is in the messages of gloo, whose errors have no class of their own."""


class GlooExchange:
    """An exchange of rows on the CPU, on a group of its own: also beside NCCL, whose devices it does not wait for.

    Make one on each rank, in the same order on all, after `torch.distributed.init_process_group`.

    Args:
        seconds: how long a rank waits for the others. It is to be more than any rank takes between two exchanges, such
            as for one batch or for writing a checkpoint. Afterwards the ranks say where each of them waited.
        store: where ranks leave word of a failure; by default the store of the process group.

    Attributes:
        rank, ranks: the number of this one, and how many there are.
        of: the process group that it was made in; None after a failure.

    Raises:
        WorkloadError: there is no process group.
        TypeError, ValueError: `seconds` is no positive number.
    """

    def __init__(self, *, seconds: float = 300.0, store: Any = None) -> None:
        check_positive("seconds", seconds)
        if not dist.is_initialized():
            raise WorkloadError(
                "there is no process group: start this script with torchrun, and call "
                "torch.distributed.init_process_group(…) before"
            )
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.of: dist.ProcessGroup | None = dist.group.WORLD
        self._seconds = seconds
        self._store = c10d.PrefixStore("fsm_train", store or c10d._get_default_store())
        self._presence = Presence(self._store, self.rank, self.ranks)
        self._failed = _FAILED
        tell_if_raised("ranks", self.fail)
        self._rows = [torch.empty(WIDTH, dtype=torch.float64) for _ in range(self.ranks)]
        self._beside = 0  # how many times something was told by the store
        self._group: dist.ProcessGroup | None = None
        with self._blaming(Topic.JOIN):
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
            # A store outlives its groups: what a training left word of, after which a script went on, is of that one.
            name = [uuid.uuid4().hex]
            dist.broadcast_object_list(name, group=self._group)
            self._failed = f"{_FAILED} {name[0]}"
            self._store_beside = c10d.PrefixStore(name[0], self._store)
            # One that fails from here on has left nobody in the middle of connecting, or without that name.
            dist.barrier(self._group)

    def __call__(self, row: Sequence[float]) -> Sequence[Sequence[float]]:
        """The rows of all ranks, in their order.

        Raises:
            PeerError: a rank failed.
            WorkloadError: one did not come in time, or is gone without a word.
        """
        if self._group is None:
            raise WorkloadError("a rank failed, and its process group has ended: start the script again")
        with self._blaming(row[0]):
            dist.all_gather(self._rows, torch.tensor(row, dtype=torch.float64), group=self._group)
        return [of_rank.tolist() for of_rank in self._rows]

    def gather(self, value: Any, place: str = "") -> list[Any]:
        """The values of all ranks, in their order: what pickle can copy, of any size. It takes longer than a row.

        Args:
            value: of this rank.
            place: where it waits, in words; "" for one that is said elsewhere.

        Raises:
            PeerError: a rank failed.
            WorkloadError: one did not come in time, where the place is given.
        """
        values: list[Any] = [None] * self.ranks
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            if (failure := self.failure(error if place else None, place)) is not None:
                raise failure from error
            raise
        return values

    def beside(self, peers: Peers) -> ToldBeside:
        """The ranks, for what is done in a thread; called on all ranks at the same place."""
        self._beside += 1
        return ToldBeside(peers, self._store_beside, self._beside, self._missing)

    def _missing(self) -> str:
        """What became of a rank, without waiting for one to end; empty if all are there."""
        gone = self._presence.gone()
        failure = self._word() or (PeerError.of(gone[0], _GONE) if gone else None)
        return str(failure or "")

    def fail(self, reason: str) -> None:
        """Leave word of a failure, and end the process group: what the others wait for raises at once.

        A group ends with the last that refers to it. That of torch's wrapper does once the error that was raised in
        it is gone, which is where the script ends at the latest.
        """
        with self._reachable():
            if self._store.add(self._failed, 1) == 1:  # the others have heard of the first
                self._store.set(f"{self._failed} because", f"{self.rank} {reason}")
        self.end()
        if dist.is_initialized():
            dist.destroy_process_group()

    def end(self) -> None:
        """Hold the groups no longer. They end, with their threads, once torch does not hold them either."""
        self._group = self.of = None

    def failure(self, error: BaseException | None = None, place: str = "") -> WorkloadError | None:
        """What another rank left word of, or what follows from an error of a connection to it; None if nothing does.

        Args:
            error: what this rank caught, in whatever group it waited for the others.
            place: where it waited, in words.
        """
        failure: WorkloadError | None = self._word()
        if failure is None and error is not None and _of_connection(error):
            failure = self._timed_out(place) if _TIMED_OUT in str(error) else self._without_a_word(error)
        if failure is not None and place:
            failure.add_note(f"This rank waited at {place}.")
        return failure

    @contextlib.contextmanager
    def _blaming(self, topic: float) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.failure(error, PLACES[Topic(int(topic))]) or self._without_a_word(error) from error

    def _word(self) -> PeerError | None:
        """What a rank left word of; None if none did, or if its store is gone with it."""
        with self._reachable():
            if self._store.check([f"{self._failed} because"]):
                rank, _, reason = self._store.get(f"{self._failed} because").decode().partition(" ")
                return PeerError.of(int(rank), reason)
        return None

    def _without_a_word(self, error: BaseException) -> PeerError:
        gone = self._presence.gone(_GRACE)
        if (failure := self._word()) is not None:  # which it left meanwhile
            return failure
        if gone:
            return PeerError.of(gone[0], _GONE)
        return PeerError(f"the connection to another rank broke, and no rank left word of a failure: {error}")

    def _timed_out(self, place: str) -> WorkloadError:
        places = self._places(place)
        there = "; ".join(
            f"rank {rank} waited at {where}" if where else f"rank {rank} came to no exchange"
            for rank, where in enumerate(places)
        )
        sentence = (
            f"the ranks waited {self._seconds:g} seconds for each other: {there}. One that came to no exchange is "
            "in the middle of something: a gradient that the others do not take part in, or an operation that takes "
            'longer (parallel={"seconds": …})'
        )
        self.fail(f"WorkloadError: {sentence}")  # one that waits in another group would do so for longer
        return WorkloadError(sentence)

    def _places(self, place: str) -> list[str]:
        """Where each rank waited; "" for one that did not."""
        places = [""] * self.ranks
        places[self.rank] = place
        with self._reachable():
            self._store.set(f"place {self.rank}", place)
            until = time.monotonic() + _GRACE
            while not all(places) and time.monotonic() < until:
                for rank in range(self.ranks):
                    if not places[rank] and self._store.check([f"place {rank}"]):
                        places[rank] = self._store.get(f"place {rank}").decode()
                time.sleep(_GRACE / 100)
        return places

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        """The store may be gone with the rank that held it."""
        with contextlib.suppress(RuntimeError):
            yield


def _of_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or any(part in str(error) for part in _OF_GLOO)


def shared_exchange(seconds: float) -> GlooExchange:
    """The exchange of this process group that waits so long: one for all trainings of this process.

    Raises:
        WorkloadError: there is no process group.
    """
    group = dist.group.WORLD if dist.is_initialized() else None
    if seconds not in _shared or _shared[seconds].of is not group or group is None:
        _shared[seconds] = GlooExchange(seconds=seconds)
    return _shared[seconds]


def end_exchanges() -> None:
    """End those of this process. A thread of gloo that is still there when Python ends may end the process with it."""
    for exchange in _shared.values():
        exchange.end()
    _shared.clear()


atexit.register(end_exchanges)
