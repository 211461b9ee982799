"""How the ranks tell each other of a checkpoint that is written beside the training: by their store.

Rule of this file: it is used in a thread of its own, and takes part in no collective. Those of the training go on
meanwhile in the main thread, and two threads would begin theirs in another order on each rank. A store has no order.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from ..checkpoints.peers import Peers
from ..checkpoints.writing import Parts
from ..core.errors import WorkloadError
from ..encoding import Json
from ..worlds.rows import Topic

_LOOKS_EVERY = 1.0
"""Seconds between two looks for a rank that is gone."""


class Store(Protocol):
    """What ranks write to and read from by name, as `torch.distributed.Store`."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def delete_key(self, key: str, /) -> bool: ...


class ToldBeside:
    """The ranks of a training, for what is done beside it: `Peers`.

    Args:
        peers: the same ranks, as the main thread sees them.
        store: of them.
        number: of what is done, the same on all ranks.
        missing: what became of a rank, in words; empty if all are there.

    Attributes:
        rank, ranks: the number of this one, and how many there are.
    """

    def __init__(self, peers: Peers, store: Store, number: int, missing: Callable[[], str]) -> None:
        self.rank, self.ranks = peers.rank, peers.ranks
        self._peers, self._store, self._missing = peers, store, missing
        self._name, self._told = f"beside {number}", 0
        self._failed = False

    @property
    def lost(self) -> bool:
        """Whether the ranks no longer meet, here or in the training."""
        return self._failed or self._peers.lost

    def tell(self, topic: Topic, own: Json) -> Sequence[Any]:
        """Give a value, and get that of each rank, in their order. What is empty is None.

        Rank 0 gathers them, so that each other rank waits for one name alone.

        Raises:
            WorkloadError: a rank failed, or is gone.
        """
        self._told += 1
        before, key = (f"{self._name} {told}" for told in (self._told - 1, self._told))
        try:
            if self.rank:
                self._store.set(f"{key} of {self.rank}", _text(own or None))
                return list(orjson.loads(self._waited_for(key)))
            others = [f"{key} of {rank}" for rank in range(1, self.ranks)]
            told = [own or None, *(orjson.loads(self._waited_for(other)) for other in others)]
            self._store.set(key, _text(told))
            for read in (*others, before):  # who has told this has read what was told before
                with contextlib.suppress(RuntimeError):
                    self._store.delete_key(read)
            return told
        except BaseException:
            self._failed = True
            raise

    def own_parts(self, parts: Parts) -> Parts:
        return self._peers.own_parts(parts)

    def beside(self) -> Peers:
        return self

    def _waited_for(self, key: str) -> bytes:
        looked, pause = time.monotonic(), 0.002
        while not self._store.check([key]):
            if self._peers.lost:
                raise WorkloadError("the ranks no longer meet, since one has failed")
            if time.monotonic() - looked > _LOOKS_EVERY:
                if missing := self._missing():
                    raise WorkloadError(missing)
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return self._store.get(key)


def _text(value: Json) -> str:
    return orjson.dumps(value).decode()
