"""How a process that is one of several ends: with a word for the others, and with a status that says what happened.

Rule of this file: nothing is done while the process trains. It knows no torch.

    its script raised               the others are told what, and are freed from waiting for it
    its training was interrupted    under torchrun the status is 128 and the signal's number, since torchrun takes 0
                                    for a training that is done
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..core.runs import interrupting_signal
from ..core.state import State

_hooked = False
_tells: dict[object, Callable[[str], None]] = {}
_status, _noted_by = 0, 0


def tell_if_raised(of: object, tell: Callable[[str], None]) -> None:
    """Call this with what the script raises, if it raises, before Python prints that. One for each `of`."""
    global _hooked
    _tells[of] = tell
    if not _hooked:
        _hooked = True
        sys.excepthook = _telling(sys.excepthook)


def _telling(before: Callable[..., Any]) -> Callable[..., Any]:
    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        note_status(0)  # the script has a status of its own
        for tell in _tells.values():
            tell(f"{kind.__name__}: {error}")
        before(kind, error, traceback)

    return hook


def note_end(state: State) -> None:
    """Note how a run of this process ended: what the last one says counts."""
    name = interrupting_signal(state)
    number = signal.Signals.__members__.get(name or "")
    note_status(128 + number if number and launched_by_torchrun() else 0)


def note_status(status: int) -> None:
    """The status to leave with, if the script comes to its end; 0 for its own."""
    global _status, _noted_by
    _status, _noted_by = status, os.getpid()


def launched_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _leave() -> None:
    """The last thing that a process does. Python has no way to change its status there, but to leave at once."""
    if not _status or _noted_by != os.getpid():  # as in a process that was forked
        return
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # ends workers; registered before this one
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(_status)


# Functions that are registered later run earlier: this one is registered where the script imports, to be the last.
atexit.register(_leave)
