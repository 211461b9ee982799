"""Tests of callbacks, without torch: whole trainings in milliseconds, and checks that fit any callback.

`at`, `drive`, `simulate` and `Trace` need no further package. The checks, the `strategies` and `MachineModel`
need Hypothesis (`pip install 'fsm-train[testing]'`), and are imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .differences import differences
from .simulation import SimulatedError, at, drive, simulate
from .trace import Event, Trace

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

__all__ = [
    "CHECKS",
    "CallbackCheckError",
    "CheckFailedError",
    "Event",
    "MachineModel",
    "NotJudgedError",
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
]

_LAZY = {
    "CHECKS": "inspection",
    **dict.fromkeys(
        (
            *("CallbackCheckError", "CheckFailedError", "NotJudgedError"),
            *("callback_checks", "check_callback", "parametrize_with_checks"),
        ),
        "checks",
    ),
    "MachineModel": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY and name != "strategies":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_LAZY.get(name, name)}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "hypothesis":
            raise
        raise ImportError(
            f"fsm_train.testing.{name} needs Hypothesis: pip install 'fsm-train[testing]'", name="hypothesis"
        ) from error
    return module if name == "strategies" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
