"""Which measured values are real numbers.

Rule of this file: a value that a float holds only a part of, or that it does not hold, is no number; nothing is rounded
to another meaning.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..core.checks import NO_TEXT, is_text
from ..core.errors import WorkloadError
from ..data.batches import in_words


def is_real_scalar(value: Any) -> bool:
    """Whether it is a single real number, of Python, NumPy or torch, that is not beyond those of a float."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real):
        return False
    # In NumPy complex numbers, times and text have a __float__ too.
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    if not hasattr(value, "__float__") or kind in "cSUOmM" or getattr(value, "size", 1) != 1:
        return False
    try:
        as_float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def as_float(value: Any) -> float:
    """A single real number as a float."""
    return float(value.item() if isinstance(value, torch.Tensor) else value)


def as_tensor(number: Any) -> torch.Tensor:
    """A single real number as a tensor that holds all of it."""
    return torch.tensor(float(number), dtype=torch.float64, device="cpu")  # not each device has float64


def named_numbers(name: str, value: Any, source: str) -> Iterator[tuple[str, float]]:
    """The number that was measured under this name, or of a mapping each under `name_key`.

    Args:
        source: who gave the value, for the message.

    Raises:
        WorkloadError: one is no real number, or has a name that is no text.
    """
    parts = {f"{name}_{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
    for part_name, part in parts.items():
        if not is_text(part_name):
            raise WorkloadError(f"{source} returned the name {part_name!r}: {NO_TEXT}")
        if not is_real_scalar(part):
            raise WorkloadError(
                f"{source} returned {in_words(part)} for {part_name!r}: let it return a real number, such as the mean "
                "over the classes, or a mapping from names to numbers"
            )
        yield part_name, as_float(part)


def add_new(metrics: dict[str, float], measured: Iterable[tuple[str, float]], source: str) -> None:
    """Add what was measured, by name, if nothing else was measured under this name.

    Args:
        metrics: what was measured before; it gets the others.
        measured: the names and values to add.
        source: who measured them, for the message.

    Raises:
        WorkloadError: there is one of this name.
    """
    for name, value in measured:
        if name in metrics:
            raise WorkloadError(f"{source} gives {name}, which something else measures too: rename one of them")
        metrics[name] = value
