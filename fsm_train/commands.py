"""All commands of the library: effects as data, which a callback answers with and the workload carries out.

>>> from fsm_train.commands import ClipGradNorm
>>> ClipGradNorm(max_norm=1.0)
ClipGradNorm(max_norm=1.0, norm_type=2.0)

A command of one's own is a frozen record that inherits from `Command`, and a function that carries
it out on a `Supervised` workload, registered with `carries_out`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core.commands import (
    AddGradNoise,
    AddPenalty,
    ClipGradNorm,
    ClipGradValue,
    CutMix,
    DetectAnomaly,
    FinishAverage,
    Freeze,
    KeepAverage,
    KeepWeights,
    MixUp,
    NoteBatchStarts,
    RestoreWeights,
    SaveCheckpoint,
    StepScheduler,
    Unfreeze,
    UpdateAverage,
    UseAverage,
    UseCompiledStep,
    UseMicroBatches,
    UseMixedPrecision,
    UseParallel,
    UseScheduler,
    WeighLoss,
)
from .core.transition import Command

__all__ = [
    "AddGradNoise",
    "AddPenalty",
    "ClipGradNorm",
    "ClipGradValue",
    "Command",
    "CutMix",
    "DetectAnomaly",
    "FinishAverage",
    "Freeze",
    "KeepAverage",
    "KeepWeights",
    "MixUp",
    "NoteBatchStarts",
    "RestoreWeights",
    "SaveCheckpoint",
    "StepScheduler",
    "Unfreeze",
    "UpdateAverage",
    "UseAverage",
    "UseCompiledStep",
    "UseMicroBatches",
    "UseMixedPrecision",
    "UseParallel",
    "UseScheduler",
    "WeighLoss",
    "carries_out",
]

if TYPE_CHECKING:
    from .worlds.registry import carries_out
else:
    from .lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__, {".worlds.registry": ("carries_out",)})
