"""The event log: what the callbacks of a training saw and decided, written, read, replayed and compared.

Nothing here imports torch. Names are loaded when they are first used, so that reading a log does not import what
only writing needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from .comparison import Difference, diff
    from .counterfactual import WhatIf, what_if
    from .errors import LogError
    from .reader import Header, Line, read_log
    from .replayer import Divergence, Replayed, replay
    from .sweeps import Sweep, sweep
    from .writer import EventLog
else:
    from ..lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".comparison": ("Difference", "diff"),
            ".counterfactual": ("WhatIf", "what_if"),
            ".errors": ("LogError",),
            ".reader": ("Header", "Line", "read_log"),
            ".replayer": ("Divergence", "Replayed", "replay"),
            ".sweeps": ("Sweep", "sweep"),
            ".writer": ("EventLog",),
        },
    )
