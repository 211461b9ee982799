"""Sinks: they watch a training, and can influence nothing. Each is loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Sink

if TYPE_CHECKING:
    from .progress import progress

__all__ = ["Sink", "progress"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Importing a module puts it into the package under its name, here that of the function in it.
    globals()[name] = found = getattr(import_module(f".{name}", __name__), name)
    return found
