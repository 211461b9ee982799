"""Training PyTorch models as an explicit finite state machine.

Importing this package does not import torch: `Supervised`, the one public name that needs it, is
loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core.callback import Callback, on
from .core.commands import ClipGradNorm, WeighLoss
from .core.errors import CallbackError, ConflictError, FactError, FsmTrainError, WorkloadError
from .core.phase import Flag, Operation, Phase
from .core.state import Plan, State, extend
from .core.table import TABLE, Edge
from .core.transition import UNCHANGED, Command, Transition
from .core.values import Facts
from .interpreter import evaluate, iterate, run, start
from .workloads.scripted import Scripted

if TYPE_CHECKING:
    from .workloads.supervised import Supervised

__all__ = [
    "TABLE",
    "UNCHANGED",
    "Callback",
    "CallbackError",
    "ClipGradNorm",
    "Command",
    "ConflictError",
    "Edge",
    "FactError",
    "Facts",
    "Flag",
    "FsmTrainError",
    "Operation",
    "Phase",
    "Plan",
    "Scripted",
    "State",
    "Supervised",
    "Transition",
    "WeighLoss",
    "WorkloadError",
    "evaluate",
    "extend",
    "iterate",
    "on",
    "run",
    "start",
]


def __getattr__(name: str) -> Any:
    if name == "Supervised":
        from .workloads.supervised import Supervised

        return Supervised
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
