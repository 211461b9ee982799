"""Which ranks are still there, after a connection broke without a word.

Rule of this file: it says of a process that it is gone only if its machine says so. One that is busy, or that cannot be
reached, is not gone. It knows no torch.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

_ANSWERS_WITHIN = 0.5
"""Seconds in which a machine that is there takes a connection."""


class Store(Protocol):
    """What ranks write to and read from by name, as `torch.distributed.Store`."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...


class Presence:
    """A port that this process holds open and never answers: the kernel takes connections while the process lives.

    So others can tell a process that is busy from one that is gone, and need neither its help nor its parent's.

    Args:
        store: where the ranks leave their addresses. Each waits here for those of all.
        rank, ranks: the number of this one, and how many there are.
    """

    def __init__(self, store: Store, rank: int, ranks: int) -> None:
        self._rank = rank
        self._socket = socket.create_server(("", 0))
        weakref.finalize(self, self._socket.close)
        port = self._socket.getsockname()[1]
        store.set(f"address {rank}", f"{_machine()} {socket.gethostname()} {port}")
        self._addresses = [_address(store.get(f"address {other}").decode()) for other in range(ranks)]
        _open.add(self)

    def gone(self, seconds: float = 0.0) -> Sequence[int]:
        """The other ranks whose processes have ended. Until there is one, look for up to so long."""
        until = time.monotonic() + seconds
        others = [other for other in range(len(self._addresses)) if other != self._rank]
        while not (found := [other for other in others if _refuses(*self._addresses[other])]):
            if time.monotonic() >= until:
                break
            time.sleep(0.02)  # what ends closes one connection after the other
        return found

    def close(self) -> None:
        """Seem gone: this process is another one now, or says so itself."""
        self._socket.close()


_open: weakref.WeakSet[Presence] = weakref.WeakSet()


def _machine() -> str:
    return f"{uuid.getnode():x}-{socket.gethostname()}"


def _address(text: str) -> tuple[str, int]:
    machine, host, port = text.split(" ")
    return "127.0.0.1" if machine == _machine() else host, int(port)


def _refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_ANSWERS_WITHIN).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # it cannot be reached, which says nothing of the process
    return False


def _close_in_child() -> None:
    """The port is that of the process that was forked: it is not to be held open by the workers of a loader."""
    for presence in list(_open):
        presence.close()


_register: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if _register is not None:  # pragma: no branch - Windows forks nothing
    _register(after_in_child=_close_in_child)
