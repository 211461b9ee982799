"""Metrics that are functions of a batch: the mean over an epoch of what they return.

Rule of this file: what a function returns stays on its device until the epoch's end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..core.errors import WorkloadError
from ..data.batches import in_words
from .means import Mean, ratio
from .real_numbers import as_tensor, is_real_scalar

Number = torch.Tensor | float
Measure = Callable[[Any, Any], "Number | tuple[Number, Number]"]
"""A function of (output, target): the mean over the batch, or its own (sum, count)."""


class FunctionMetric:
    """The mean over an epoch of a function of (output, target).

    Attributes:
        name: of the metric, for errors.
        function: returns the mean over one batch, a number or a scalar tensor; or a pair of them, (sum, count).
        mean: of means, over the batches so far, weighted by their samples.
        sums, counts: those of the batches so far, of a function that returns both.
    """

    when = "by its sums"
    may_be_several = False

    def __init__(self, name: str, function: Measure) -> None:
        self.name = name
        self.function = function
        self.mean, self.sums, self.counts = Mean(), Mean(), Mean()

    def add(self, output: Any, target: Any, samples: float) -> None:
        value = self.function(output, target)
        if not isinstance(value, tuple):
            self._check_same(self.sums, "its mean")
            self.mean.add(self._scalar(value, "returned"), samples)
            return
        if len(value) != 2:
            raise WorkloadError(
                f"the metric {self.name!r} returned {in_words(value)}: return one number, or a pair "
                "(sum, count) that weighs itself"
            )
        self._check_same(self.mean, "(sum, count)")
        total, count = (
            self._scalar(part, f"returned as the {what}") for part, what in zip(value, ("sum", "count"), strict=True)
        )
        self.sums.add(total, 1)
        self.counts.add(count, 1)

    def _check_same(self, other: Mean, now: str) -> None:
        if not other.is_empty:
            raise WorkloadError(
                f"the metric {self.name!r} returned {now} for this batch, and not for an earlier one of this "
                "epoch: return the same kind for each batch"
            )

    def _scalar(self, value: Any, returned: str) -> torch.Tensor:
        if getattr(value, "dim", int)() != 0 or not is_real_scalar(value):
            raise WorkloadError(
                f"the metric {self.name!r} {returned} {in_words(value)}: return a real number or a scalar tensor, such "
                "as the mean over the batch, or a pair of them, (sum, count)"
            )
        return value.detach() if isinstance(value, torch.Tensor) else as_tensor(value)

    def results(self, name: str) -> Iterator[tuple[str, float]]:
        result = self.mean.result() if self.sums.is_empty else self._ratio()
        if result is not None:
            yield name, result

    def _ratio(self) -> float | None:
        counts = self.counts.values()
        if (wrong := next((count for count in counts if not 0 <= count < math.inf), None)) is not None:
            raise WorkloadError(
                f"the metric {self.name!r} returned (sum, count) with the count {wrong}: a count is a finite number "
                "from 0"
            )
        return ratio(self.sums.values(), counts)

    def reset(self) -> None:
        for collected in (self.mean, self.sums, self.counts):
            collected.reset()

    def state(self) -> Any:
        if self.sums.is_empty:
            return self.mean.state()
        return {"sums": self.sums.state(), "counts": self.counts.state()}

    def load_state(self, state: Any) -> None:
        """Restore what `state` gave.

        Raises:
            WorkloadError: it is of an object.
        """
        self.reset()
        if isinstance(state, list):
            self.mean.load_state(state)
        elif isinstance(state, Mapping) and state.keys() == {"sums", "counts"}:
            self.sums.load_state(state["sums"])
            self.counts.load_state(state["counts"])
        else:
            raise WorkloadError("it was an object when it was saved, and is a function now")
