"""How the ranks of a process group exchange rows, for `Agreed`.

Rule of this file: it carries rows and says who failed. What a row means is in `worlds/rows.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from ..core.checks import check_positive
from ..core.errors import WorkloadError
from ..worlds.disagreement import PeerError
from ..worlds.rows import PLACES, WIDTH, Row

_FAILED = "failed"
_shared: dict[float, GlooExchange] = {}
_GRACE = 2.0
"""Seconds in which ranks whose wait is over say where they waited."""


class GlooExchange:
    """An exchange of rows on the CPU, on a group of its own: also beside NCCL, whose devices it does not wait for.

    Make one on each rank, in the same order on all, after `torch.distributed.init_process_group`.

    Args:
        seconds: how long a rank waits for the others. It is to be more than any rank takes between two exchanges, such
            as for one batch or for writing a checkpoint. Afterwards the ranks say where each of them waited.
        store: where ranks leave word of a failure; by default the store of the process group.

    Attributes:
        rank, ranks: the number of this one, and how many there are.
        of: the process group that it was made in.

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
        self.of = dist.group.WORLD
        self._seconds = seconds
        self._store = c10d.PrefixStore("fsm_train", store or c10d._get_default_store())
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        self._rows = [torch.empty(WIDTH, dtype=torch.float64) for _ in range(self.ranks)]

    def __call__(self, row: Sequence[float]) -> Sequence[Sequence[float]]:
        """The rows of all ranks, in their order.

        Raises:
            PeerError: a rank failed.
            WorkloadError: one did not come in time, or is gone without a word.
        """
        began = time.monotonic()
        try:
            dist.all_gather(self._rows, torch.tensor(row, dtype=torch.float64), group=self._group)
        except RuntimeError as error:
            waited = time.monotonic() - began
            raise self._explained(error, PLACES[Row.unpacked(row).topic], waited) from error
        return [of_rank.tolist() for of_rank in self._rows]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order: what pickle can copy, of any size. It takes longer than a row.

        Raises:
            PeerError: a rank failed.
        """
        values: list[Any] = [None] * self.ranks
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            if (failure := self.failure()) is not None:
                raise failure from error
            raise
        return values

    def fail(self, reason: str) -> None:
        """Leave word of a failure, and end the process group: what the others wait for raises at once."""
        with self._reachable():
            if self._store.add(_FAILED, 1) == 1:  # the others have heard of the first
                self._store.set(f"{_FAILED} because", f"{self.rank} {reason}")
        if dist.is_initialized():
            dist.destroy_process_group()

    def failure(self) -> PeerError | None:
        """What a rank left word of; None if none did, or if its store is gone with it."""
        with self._reachable():
            if self._store.check([f"{_FAILED} because"]):
                rank, _, reason = self._store.get(f"{_FAILED} because").decode().partition(" ")
                return PeerError.of(int(rank), reason)
        return None

    def _explained(self, error: RuntimeError, place: str, waited: float) -> WorkloadError:
        if (failure := self.failure()) is not None:
            return failure
        if waited < self._seconds:
            return PeerError(f"another rank is gone without a word, while rank {self.rank} was at {place}: {error}")
        places = self._places(place)
        there = "; ".join(
            f"rank {rank} waited at {where}" if where else f"rank {rank} came to no exchange"
            for rank, where in enumerate(places)
        )
        return WorkloadError(
            f"the ranks waited {self._seconds:g} seconds for each other: {there}. One that came to no exchange is "
            "in the middle of something: a gradient that the others do not take part in, or an operation that takes "
            "longer (GlooExchange(seconds=…))"
        )

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


def shared_exchange(seconds: float) -> GlooExchange:
    """The exchange of this process group that waits so long: one for all trainings of this process.

    Raises:
        WorkloadError: there is no process group.
    """
    group = dist.group.WORLD if dist.is_initialized() else None
    if seconds not in _shared or _shared[seconds].of is not group:
        _shared[seconds] = GlooExchange(seconds=seconds)
    return _shared[seconds]
