"""The machine: records, table, merge. Pure: no torch, no clock, no files, no randomness of its own.

The records are to be had from here too, as from `fsm_train`; each module is imported when one of its names is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["UNCHANGED", "Callback", "Command", "Facts", "Flag", "Operation", "Phase", "Plan", "State", "Transition"]

if TYPE_CHECKING:
    from .callback import Callback
    from .phase import Flag, Operation, Phase
    from .state import Plan, State
    from .transition import UNCHANGED, Command, Transition
    from .values import Facts
else:
    from ..lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".callback": ("Callback",),
            ".phase": ("Flag", "Operation", "Phase"),
            ".state": ("Plan", "State"),
            ".transition": ("UNCHANGED", "Command", "Transition"),
            ".values": ("Facts",),
        },
    )
