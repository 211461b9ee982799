"""The event log: what the callbacks of a training saw and decided, written, read, replayed and compared.

Nothing here imports torch. Names are loaded when they are first used, so that reading a log does not import what
only writing needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import Difference, diff
    from .counterfactual import WhatIf, what_if
    from .errors import LogError
    from .reader import Header, Line, read_log
    from .replayer import Divergence, Replayed, replay
    from .sweeps import Sweep, sweep
    from .writer import EventLog

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
    "Difference": "comparison",
    "Divergence": "replayer",
    "EventLog": "writer",
    "Header": "reader",
    "Line": "reader",
    "LogError": "errors",
    "Replayed": "replayer",
    "Sweep": "sweeps",
    "WhatIf": "counterfactual",
    "diff": "comparison",
    "read_log": "reader",
    "replay": "replayer",
    "sweep": "sweeps",
    "what_if": "counterfactual",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
