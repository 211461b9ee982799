"""The exit statuses of `fsm-train`, and the error of a wrong argument."""

from __future__ import annotations

from ..core.errors import FsmTrainError

AGREES = 0
"""Everything agrees, or there was nothing to compare."""

DIFFERS = 1
"""Something differs; for what-if: is refused; for checkpoints: is damaged; for diagnose: an illness was found."""

UNREADABLE = 2
"""Something cannot be read, or an argument is wrong."""

INTERRUPTED = 130
"""Ctrl-C, as shells have it: 128 + SIGINT."""


class UsageError(FsmTrainError):
    """An argument does not fit the log, or what it names cannot be imported."""
