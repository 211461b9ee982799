"""What a pure function may not do, noticed while it does it.

Rule of this file: watch, change nothing. Nothing is patched, so it does not matter how a callback came
by a clock (`import time`, `from time import time`, a default argument): calls of C functions are seen
by a profile function, files, the network and processes by an audit hook, and the state of a global
generator is compared before and after.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Literal

Kind = Literal["clock", "chance", "file", "network", "environment"]
Deed = tuple[Kind, str]
"""What was done, and by what: ("clock", "time.time")."""

_CLOCKS = (
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
    *("process_time", "process_time_ns", "thread_time", "thread_time_ns", "localtime", "gmtime", "ctime"),
)


def _calls() -> dict[object, Deed]:
    """The C functions that a pure function does not call."""
    found: dict[object, Deed] = {
        getattr(time, name): ("clock", f"time.{name}") for name in _CLOCKS if hasattr(time, name)
    }
    for now in ("now", "utcnow", "today"):
        found[getattr(datetime.datetime, now)] = ("clock", f"datetime.{now}")
    found[datetime.date.today] = ("clock", "date.today")
    # All functions of the module `random` end in one of these two methods of its one generator.
    found[random.random] = ("chance", "random.random")
    found[random.getrandbits] = ("chance", "random.getrandbits")
    found[os.urandom] = ("chance", "os.urandom")
    for name in ("stat", "lstat", "access", "getcwd"):  # those that raise no audit event
        found[getattr(os, name)] = ("file", f"os.{name}")
    return found


_CALLS = _calls()
_FILES = ("open", "os.", "shutil.", "subprocess.", "pathlib.", "glob.", "tempfile.", "sqlite3.", "mmap.")
_NETWORK = ("socket.", "urllib.", "http.", "ssl.", "ftplib.", "smtplib.")
_ENVIRONMENT = ("os.putenv", "os.unsetenv")


class _Listener(threading.local):
    """Who is told in this thread, if anybody is."""

    notes: list[Deed] | None = None


_LISTENER = _Listener()


@contextlib.contextmanager
def watched(notes: list[Deed]) -> Iterator[None]:
    """Note what is done that a pure function does not do.

    What a C function calls directly is not seen (`map(time.time, …)` has no such form, but
    `sorted(values, key=random_bits)` does); such a callback is found by its answers.
    """
    _install()
    before = sys.getprofile()
    environment = _watch_environment(notes)

    def profile(frame: FrameType, event: str, function: Any) -> None:  # pragma: no cover - tracing is off in it
        if event == "c_call":
            deed = _CALLS.get(function)
            if deed is not None and not (deed[0] == "file" and _importing(frame)):
                notes.append(deed)

    collecting = gc.isenabled()
    gc.disable()  # a collection calls whoever asked to be told of it, and they read clocks
    _LISTENER.notes = notes
    sys.setprofile(profile)
    try:
        yield
    finally:
        _profile_again(before)
        _LISTENER.notes = None
        environment()
        if collecting:
            gc.enable()


def _profile_again(before: Any) -> None:
    """Go on with whoever was profiling: a function, or a profiler in C, which is its own object and no function."""
    if before is None or callable(before):
        sys.setprofile(before)
    else:
        sys.setprofile(None)
        before.enable()


def _watch_environment(notes: list[Deed]) -> Callable[[], None]:
    """Let the mapping of the environment tell who reads it; returns what undoes that."""
    environ = type(os.environ)
    read = environ.__getitem__

    def noting(self: Any, key: Any) -> Any:
        notes.append(("environment", f"os.environ[{key!r}]"))
        return read(self, key)

    environ.__getitem__ = noting  # type: ignore[method-assign]
    return lambda: setattr(environ, "__getitem__", read)


_installed = False


def _install() -> None:
    """Have the audit hook, which cannot be taken away again, and does nothing while nobody listens."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_hear)


def _hear(  # pragma: no cover - tracing is off in an audit hook
    event: str, args: tuple[object, ...], listener: _Listener = _LISTENER
) -> None:
    notes = listener.notes  # bound above: when Python ends, the hook outlives the variables of this module
    if notes is None:
        return
    kind: Kind | None = None
    if event.startswith(_ENVIRONMENT):
        kind = "environment"
    elif event.startswith(_NETWORK):
        kind = "network"
    elif event.startswith(_FILES) and not _importing(sys._getframe(1)):
        kind = "file"
    if kind is not None:
        detail = repr(args[0]) if args and isinstance(args[0], (str, bytes, int)) else ""
        notes.append((kind, f"{event}({detail})"))


def _importing(frame: FrameType | None) -> bool:  # pragma: no cover - tracing is off where it is called
    """Whether a module is just being read: an import in a function is slow, but no input."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def generators() -> dict[str, object]:
    """The state of each global random generator that there is. Only of libraries that were imported by others."""
    found: dict[str, object] = {"random": random.getstate()}
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        name, keys, *rest = numpy_random.get_state()
        found["numpy.random"] = (name, keys.tobytes(), *rest)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        found["torch"] = torch.get_rng_state().numpy().tobytes()
    return found
