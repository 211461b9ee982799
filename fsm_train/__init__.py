"""Training PyTorch models as an explicit finite state machine.

Importing this package does not import torch: the public names that need it, and others that are
not always needed, are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core.callback import Callback, factory, on
from .core.commands import ClipGradNorm, WeighLoss
from .core.description import describe
from .core.errors import (
    CallbackError,
    CheckpointError,
    ConflictError,
    FactError,
    FsmTrainError,
    MetricError,
    NoCheckpointError,
    WorkloadError,
)
from .core.phase import Flag, Operation, Phase
from .core.state import Plan, State, extend
from .core.table import TABLE, Edge
from .core.transition import UNCHANGED, Command, Transition
from .core.values import Facts
from .interpreter import evaluate, iterate, run, start
from .worlds.scripted import Scripted

if TYPE_CHECKING:
    from .ablation import Ablation, ablate
    from .checkpoints.api import restore
    from .eventlog import (
        Difference,
        Divergence,
        EventLog,
        LogError,
        Replayed,
        WhatIf,
        diff,
        read_log,
        replay,
        sweep,
        what_if,
    )
    from .eventlog.recorded import Recorded
    from .lr_finder import LrFound, find_lr
    from .supervised.workload import Supervised
    from .worlds.registry import carries_out

__all__ = [
    "TABLE",
    "UNCHANGED",
    "Ablation",
    "Callback",
    "CallbackError",
    "CheckpointError",
    "ClipGradNorm",
    "Command",
    "ConflictError",
    "Difference",
    "Divergence",
    "Edge",
    "EventLog",
    "FactError",
    "Facts",
    "Flag",
    "FsmTrainError",
    "LogError",
    "LrFound",
    "MetricError",
    "NoCheckpointError",
    "Operation",
    "Phase",
    "Plan",
    "Recorded",
    "Replayed",
    "Scripted",
    "State",
    "Supervised",
    "Transition",
    "WeighLoss",
    "WhatIf",
    "WorkloadError",
    "ablate",
    "carries_out",
    "describe",
    "diff",
    "evaluate",
    "extend",
    "factory",
    "find_lr",
    "iterate",
    "on",
    "read_log",
    "replay",
    "restore",
    "run",
    "start",
    "sweep",
    "what_if",
]


_LAZY = {
    "Difference": ".eventlog",
    "Divergence": ".eventlog",
    "EventLog": ".eventlog",
    "LogError": ".eventlog",
    "Recorded": ".eventlog.recorded",
    "Replayed": ".eventlog",
    "WhatIf": ".eventlog",
    "diff": ".eventlog",
    "read_log": ".eventlog",
    "replay": ".eventlog",
    "sweep": ".eventlog",
    "what_if": ".eventlog",
    "Ablation": ".ablation",
    "LrFound": ".lr_finder",
    "Supervised": ".supervised.workload",
    "ablate": ".ablation",
    "carries_out": ".worlds.registry",
    "restore": ".checkpoints.api",
    "find_lr": ".lr_finder",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
