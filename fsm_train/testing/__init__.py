"""Tests of callbacks, without torch: whole trainings in milliseconds, and checks that fit any callback.

`at`, `drive`, `simulate` and `Trace` need no further package. The checks, the `strategies` and `MachineModel`
need Hypothesis (`pip install 'fsm-train[testing]'`), and are imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .differences import differences
from .rank_threads import DeadlockError
from .ranks import Moment, PerRank, RankEnds, RanksDifferError, train_ranks
from .simulation import SimulatedError, at, drive, simulate
from .trace import Event, Trace

__all__ = [
    "CHECKS",
    "CallbackCheckError",
    "CheckFailedError",
    "DeadlockError",
    "Event",
    "MachineModel",
    "Moment",
    "NotJudgedError",
    "PerRank",
    "RankEnds",
    "RanksDifferError",
    "SimulatedError",
    "Trace",
    "at",
    "callback_checks",
    "check_callback",
    "differences",
    "drive",
    "parametrize_with_checks",
    "simulate",
    "strategies",
    "train_ranks",
]

if TYPE_CHECKING:
    from . import strategies
    from .checks import (
        CallbackCheckError,
        CheckFailedError,
        NotJudgedError,
        callback_checks,
        check_callback,
        parametrize_with_checks,
    )
    from .inspection import CHECKS
    from .model import MachineModel
else:
    from ..lazy import lazy_names

    _load, __dir__ = lazy_names(
        __name__,
        {
            ".strategies": (),
            ".checks": (
                *("CallbackCheckError", "CheckFailedError", "NotJudgedError"),
                *("callback_checks", "check_callback", "parametrize_with_checks"),
            ),
            ".inspection": ("CHECKS",),
            ".model": ("MachineModel",),
        },
    )

    def __getattr__(name: str) -> object:
        try:
            return _load(name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "hypothesis":
                raise
            raise ImportError(
                f"fsm_train.testing.{name} needs Hypothesis: pip install 'fsm-train[testing]'", name="hypothesis"
            ) from error
