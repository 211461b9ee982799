"""What a pure function may not do, noted while it does it.

Rule of this file: watch, and replace nothing. So it does not matter how a callback came by a clock
(`import time`, `from time import time`, a default argument). A profile function sees calls of C functions
and reads of the environment, an audit hook sees files, the network and processes, and the state of each
global generator is compared before and after. While a function is watched, garbage collection waits.
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
import uuid
from collections.abc import Iterator
from types import FrameType
from typing import Any, Literal

SideEffectKind = Literal["clock", "chance", "file", "network", "environment"]
SideEffect = tuple[SideEffectKind, str]
"""The kind, and what was called: ("clock", "time.time")."""

_CLOCKS = (
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
    *("process_time", "process_time_ns", "thread_time", "thread_time_ns", "localtime", "gmtime", "ctime"),
    *("asctime", "strftime", "clock_gettime", "clock_gettime_ns"),
)


def _impure_functions() -> dict[object, SideEffect]:
    """The C functions that a pure function does not call."""
    found: dict[object, SideEffect] = {
        getattr(time, name): ("clock", f"time.{name}") for name in _CLOCKS if hasattr(time, name)
    }
    for now in ("now", "utcnow", "today"):
        found[getattr(datetime.datetime, now)] = ("clock", f"datetime.{now}")
    found[datetime.date.today] = ("clock", "date.today")
    # All functions of the module `random` call one of these two methods of its global generator.
    found[random.random] = ("chance", "random.random")
    found[random.getrandbits] = ("chance", "random.getrandbits")
    found |= {getattr(os, name): ("chance", f"os.{name}") for name in ("urandom", "getrandom") if hasattr(os, name)}
    found[os.times] = ("clock", "os.times")
    found[os.getpid] = ("environment", "os.getpid")
    generate_time = getattr(uuid, "_generate_time_safe", None)  # None where the C library has none
    found |= {} if generate_time is None else {generate_time: ("clock", "uuid.uuid1")}
    for name in ("stat", "lstat", "access", "getcwd"):  # those that raise no audit event
        found[getattr(os, name)] = ("file", f"os.{name}")
    return found


_IMPURE_FUNCTIONS = _impure_functions()
_READS_ENVIRONMENT = type(os.environ).__getitem__.__code__  # get, getenv and `in` call it too
_FILES = ("open", "os.", "shutil.", "subprocess.", "pathlib.", "glob.", "tempfile.", "sqlite3.", "mmap.")
_NETWORK = ("socket.", "urllib.", "http.", "ssl.", "ftplib.", "smtplib.")
_ENVIRONMENT = ("os.putenv", "os.unsetenv")


class _Target(threading.local):
    """Where the audit hook notes what happens in this thread.

    Attributes:
        effects: the list of the function that is watched; None while none is.
    """

    effects: list[SideEffect] | None = None


_TARGET = _Target()


@contextlib.contextmanager
def watched(effects: list[SideEffect]) -> Iterator[None]:
    """Append each side effect of the code in the `with` block to `effects`.

    A C function that another C function calls is not seen: `sorted(values, key=random_bits)`. The check of
    equal answers finds such a callback.
    """
    _install_audit_hook()
    profiler = sys.getprofile()

    def profile(frame: FrameType, event: str, function: Any) -> None:  # pragma: no cover - tracing is off in it
        if event == "call":
            if frame.f_code is _READS_ENVIRONMENT:
                effects.append(("environment", f"os.environ[{frame.f_locals['key']!r}]"))
        elif event == "c_call":
            effect = _IMPURE_FUNCTIONS.get(function)
            if effect is not None and not (effect[0] == "file" and _is_import(frame)):
                effects.append(effect)

    collects = gc.isenabled()
    gc.disable()  # callbacks of the collector may read clocks
    _TARGET.effects = effects
    sys.setprofile(profile)
    try:
        yield
    finally:
        _restore_profiler(profiler)
        _TARGET.effects = None
        if collects:
            gc.enable()


def _restore_profiler(profiler: Any) -> None:
    """Put back a profile function, or a profiler written in C, which is an object and not a function."""
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    else:
        sys.setprofile(None)
        profiler.enable()


_installed = False


def _install_audit_hook() -> None:
    """Install the audit hook once. Python cannot remove it; it does nothing while no function is watched."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_audit_hook)


def _audit_hook(  # pragma: no cover - tracing is off in an audit hook
    event: str, args: tuple[object, ...], target: _Target = _TARGET
) -> None:
    effects = target.effects  # a default argument: when Python ends, the hook outlives this module's variables
    if effects is None:
        return
    kind: SideEffectKind | None = None
    if event.startswith(_ENVIRONMENT):
        kind = "environment"
    elif event.startswith(_NETWORK):
        kind = "network"
    elif event.startswith(_FILES) and not _is_import(sys._getframe(1)):
        kind = "file"
    if kind is not None:
        detail = repr(args[0]) if args and isinstance(args[0], (str, bytes, int)) else ""
        effects.append((kind, f"{event}({detail})"))


def _is_import(frame: FrameType | None) -> bool:  # pragma: no cover - tracing is off where it is called
    """Whether a module is being imported: an import in a function is slow, but reads no input."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def generators() -> dict[str, object]:
    """The state of each global random generator. NumPy and torch are looked at only if they are imported already."""
    found: dict[str, object] = {"random": random.getstate()}
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        name, keys, *rest = numpy_random.get_state()
        found["numpy.random"] = (name, keys.tobytes(), *rest)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        found["torch"] = torch.get_rng_state().numpy().tobytes()
    return found
