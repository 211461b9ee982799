"""Known illnesses of trainings, as rules over what a log says. Nothing here imports torch.

Names are loaded when they are first used: the rules alone, which the callback `diagnosing` asks, need no log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Diagnosis", "Evidence", "Finding", "diagnose"]

if TYPE_CHECKING:
    from .api import diagnose
    from .findings import Diagnosis, Evidence, Finding
else:
    from ..lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__, {".api": ("diagnose",), ".findings": ("Diagnosis", "Evidence", "Finding")}
    )
