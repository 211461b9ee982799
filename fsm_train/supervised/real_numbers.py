"""Which measured values are real numbers.

Rule of this file: a value that a float holds only a part of, or that it does not hold, is no number; nothing is rounded
to another meaning.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch


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
