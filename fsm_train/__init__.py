"""Training PyTorch models as an explicit finite state machine.

Importing this package does not import torch: the public names that need it, and others that are
not always needed, are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core.callback import Callback, factory, on
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
from .core.phase import Flag, Phase
from .core.reductions import Sensor
from .core.runs import extend
from .core.state import Plan, State
from .core.transition import Command, Transition
from .core.workload import Workload
from .evaluation import evaluate
from .interpreter import iterate, run, start
from .sinks.base import Sink

__all__ = [
    "Alternating",
    "Callback",
    "CallbackError",
    "CheckpointError",
    "Command",
    "ConflictError",
    "Evaluation",
    "EventLog",
    "FactError",
    "Flag",
    "FsmTrainError",
    "LogError",
    "MetricError",
    "NoCheckpointError",
    "Phase",
    "Plan",
    "Player",
    "Sensor",
    "Sink",
    "State",
    "Supervised",
    "Transition",
    "Workload",
    "WorkloadError",
    "carries_out",
    "commands",
    "describe",
    "diagnose",
    "evaluate",
    "extend",
    "factory",
    "find_batch_size",
    "iterate",
    "load_weights",
    "on",
    "over_all",
    "plot_history",
    "plot_schedule",
    "predict",
    "profiled",
    "replay",
    "restore",
    "run",
    "sharded",
    "start",
    "together",
    "weights",
    "what_if",
]

if TYPE_CHECKING:
    from . import commands
    from .batch_size import find_batch_size
    from .checkpoints.api import restore
    from .data import sharded, together
    from .diagnosis import diagnose
    from .eventlog import EventLog, LogError, replay, what_if
    from .plots import plot_history, plot_schedule
    from .profiling import profiled
    from .supervised.alternating import Alternating
    from .supervised.evaluations import Evaluation
    from .supervised.exchanged_weights import weights
    from .supervised.over_all import over_all
    from .supervised.player import Player
    from .supervised.prediction import predict
    from .supervised.weights import load_weights
    from .supervised.workload import Supervised
    from .worlds.registry import carries_out

    __version__: str

    # Public here before they had a better home: still importable, no longer in __all__.
    # isort: off
    from .ablation import Ablation as Ablation, ablate as ablate
    from .core.commands import ClipGradNorm as ClipGradNorm, WeighLoss as WeighLoss
    from .core.phase import Operation as Operation
    from .core.table import TABLE as TABLE, Edge as Edge
    from .core.transition import UNCHANGED as UNCHANGED
    from .core.values import Facts as Facts
    from .eventlog import Difference as Difference, Divergence as Divergence, Replayed as Replayed, WhatIf as WhatIf
    from .eventlog import diff as diff, read_log as read_log, sweep as sweep
    from .eventlog.recorded import Recorded as Recorded
    from .lr_finder import LrFound as LrFound, find_lr as find_lr
    from .worlds.scripted import Scripted as Scripted
    # isort: on
else:
    from .lazy import lazy_names

    _load, __dir__ = lazy_names(
        __name__,
        {
            ".commands": (),
            ".batch_size": ("find_batch_size",),
            ".profiling": ("profiled",),
            ".ablation": ("Ablation", "ablate"),
            ".checkpoints.api": ("restore",),
            ".data": ("sharded", "together"),
            ".diagnosis": ("diagnose",),
            ".core.commands": ("ClipGradNorm", "WeighLoss"),
            ".core.phase": ("Operation",),
            ".core.table": ("TABLE", "Edge"),
            ".core.transition": ("UNCHANGED",),
            ".core.values": ("Facts",),
            ".eventlog": (
                *("Difference", "Divergence", "EventLog", "LogError", "Replayed", "WhatIf"),
                *("diff", "read_log", "replay", "sweep", "what_if"),
            ),
            ".eventlog.recorded": ("Recorded",),
            ".lr_finder": ("LrFound", "find_lr"),
            ".plots": ("plot_history", "plot_schedule"),
            ".worlds.registry": ("carries_out",),
            ".supervised.exchanged_weights": ("weights",),
            ".supervised.prediction": ("predict",),
            ".supervised.over_all": ("over_all",),
            ".supervised.alternating": ("Alternating",),
            ".supervised.evaluations": ("Evaluation",),
            ".supervised.player": ("Player",),
            ".supervised.weights": ("load_weights",),
            ".supervised.workload": ("Supervised",),
            ".worlds.scripted": ("Scripted",),
        },
    )

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("fsm-train")
        return _load(name)
