"""The event log: what the callbacks of a training saw and decided, written, read, replayed and varied.

Nothing here imports torch. The names are loaded when they are first used, so that reading a log
does not import what only writing one needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparing import Difference, diff
    from .errors import LogError
    from .reading import Header, Line, read_log
    from .replaying import Divergence, Replayed, replay
    from .supposing import WhatIf, what_if
    from .sweeping import Sweep, sweep
    from .writing import EventLog

__all__ = [
    "Difference",
    "Divergence",
    "EventLog",
    "Header",
    "Line",
    "LogError",
    "Replayed",
    "Sweep",
    "WhatIf",
    "diff",
    "read_log",
    "replay",
    "sweep",
    "what_if",
]

_HOME = {
    "Difference": "comparing",
    "Divergence": "replaying",
    "EventLog": "writing",
    "Header": "reading",
    "Line": "reading",
    "LogError": "errors",
    "Replayed": "replaying",
    "Sweep": "sweeping",
    "WhatIf": "supposing",
    "diff": "comparing",
    "read_log": "reading",
    "replay": "replaying",
    "sweep": "sweeping",
    "what_if": "supposing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
