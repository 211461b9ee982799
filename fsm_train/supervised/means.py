"""Means of scalars that are collected on the device and read once.

Rule of this file: no number is rounded before the last division, whatever its type.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch


class Mean:
    """The weighted mean of scalar tensors, which stay on their device, in their type, until the mean is read.

    Adding a scalar appends it to a list: no kernel is launched, and nothing waits for the device. Every
    BLOCK scalars are stacked into one tensor of each type, so that memory does not grow by an allocation a batch.
    """

    BLOCK = 1024

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._latest: list[torch.Tensor] = []
        self._blocks: list[torch.Tensor] = []
        self._weights: list[float] = []

    def add(self, value: torch.Tensor, weight: float) -> None:
        latest = self._latest
        latest.append(value)
        self._weights.append(weight)
        if len(latest) == self.BLOCK:
            self._stack()

    def _stack(self) -> None:
        self._blocks += _in_blocks(self._latest)
        self._latest = []

    def result(self) -> float | None:
        """The mean in double precision, of a sum that is exact; None if nothing was added."""
        weights, latest, blocks = self._weights, self._latest, self._blocks
        if not weights:
            return None
        if len(latest) == 1 and not blocks:  # as of a full batch: one scalar needs no tensor around it
            return weighted_mean([latest[0].item()], weights, short=latest[0].dtype in _SHORT)
        values = self.values()
        return weighted_mean(values, weights, short=all(block.dtype in _SHORT for block in blocks))

    def values(self) -> list[float]:
        """The numbers that were added, in their order."""
        self._stack()
        return _on_cpu(self._blocks)

    @property
    def is_empty(self) -> bool:
        return not self._weights

    def state(self) -> list[Any]:
        blocks = _in_blocks(self._latest)
        latest = blocks.pop() if blocks else None
        return [latest, [*self._blocks, *blocks], list(self._weights)]

    def load_state(self, state: list[Any]) -> None:
        """What was added before stays a block of its own, wherever it was loaded to."""
        latest, blocks, weights = state
        self._latest, self._blocks = [], [*blocks, *([] if latest is None else [latest])]
        self._weights = list(weights)


def _in_blocks(scalars: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The scalars in their order, stacked. Each block has one type and one device: a common type would round.

    They are looked at here, all at once, and not as each is added: that is in the middle of a step.
    """
    if len(scalars) == 1:
        return [scalars[0].reshape(1)]
    if len({scalar.dtype for scalar in scalars}) <= 1 and len({scalar.device for scalar in scalars}) <= 1:
        return [torch.stack([*scalars])] if scalars else []
    alike = itertools.groupby(scalars, lambda scalar: (scalar.dtype, scalar.device))
    return [torch.stack([*block]) for _, block in alike]


def _on_cpu(blocks: Sequence[torch.Tensor]) -> list[float]:
    """The numbers of all blocks, one transfer a block. No number is rounded."""
    return [value for block in blocks for value in block.tolist()]


_SHORT = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""The types whose numbers have at most 24 bits."""


def weighted_mean(values: Sequence[float], weights: Sequence[float], *, short: bool = False) -> float:
    """The mean of the values, each as often as its weight says, as if all were added in one pass without rounding.

    >>> weighted_mean([0.1, 0.7], [3, 1])
    0.25

    Args:
        values: finite or not.
        weights: not negative, as many as values, and not all 0.
        short: whether the values are numbers of single precision, whose products with counts are exact.
    """
    total = math.fsum(weights)
    if short and all(map(_is_count, set(weights))):
        try:
            return math.fsum(map(operator.mul, values, weights)) / total
        except ValueError:  # an infinite one of each sign
            return math.nan
    if not all(map(math.isfinite, values)):
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    shift = 128 if max(map(abs, values)) > 2.0**800 else 0  # or products would not fit
    halves = {weight: _halves(math.ldexp(weight, -shift)) for weight in set(weights)}
    pairs = zip(values, weights, strict=True)
    products = (v * w for value, weight in pairs for v in _halves(value) for w in halves[weight])
    return math.ldexp(math.fsum(products) / total, shift)


def _is_count(weight: float) -> bool:
    """Whether its product with a number of single precision is exact."""
    return weight < 2**29 and weight == int(weight)


def ratio(sums: Sequence[float], counts: Sequence[float]) -> float | None:
    """The sum of the sums, over that of the counts, each as if added without rounding; None where nothing was counted.

    >>> ratio([1, 2], [4, 0.5]), ratio([0.0], [0])
    (0.6666666666666666, None)

    Args:
        sums: finite or not.
        counts: finite and not negative.
    """
    total = math.fsum(counts)
    if total == 0:
        return None
    if not all(map(math.isfinite, sums)):
        return sum(sums) / total
    shift = 128 if max(map(abs, sums)) > 2.0**800 else 0  # or the sum would not fit
    return math.fsum(math.ldexp(value, -shift) for value in sums) / total * 2.0**shift


def _halves(number: float) -> tuple[float, ...]:
    """Numbers of at most 26 bits each that add up to this one: products of two of them are exact."""
    mantissa, exponent = math.frexp(number)
    high = math.ldexp(float(round(mantissa * 0x4000000)), exponent - 26)
    return (high,) if high == number else (high, number - high)
