"""How what several ranks measured becomes one number, which each of them is told.

Rule of this file: pure functions of what all ranks gave, in the order of the ranks. So each rank computes the same, to
the last bit, and a number that all ranks gave stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import attrs

from .facts import UNSAVED

Reduction = Literal["mean", "sum", "max", "min"]
Weighed = tuple[float, float]
"""A value, and what it weighs in a mean."""

REDUCTIONS: Mapping[str, Reduction] = {"loss": "mean", "grad_norm": "max", "stepped": "min", "elapsed": "max"}
"""Of the facts that every workload measures. A step that one rank's scaler held back was held back."""


@attrs.frozen
class Sensor:
    """A function that measures a fact, and how the measurements of several ranks become one.

    It is called as the function is, so it can stand wherever a sensor can. A plain function is a mean.

    >>> from fsm_train.testing import simulate
    >>> from fsm_train import Phase, Transition, on
    >>> @on(Phase.LOSS_END, needs={"tokens"}, memory=0.0)
    ... def count_tokens(state, tokens):
    ...     return Transition(memory=tokens + state.facts["tokens"])
    >>> simulate([count_tokens], ranks=2, tokens=Sensor(lambda state: 100, reduction="sum")).memory["count_tokens"]
    200.0

    Attributes:
        measure: what is called: a function of the workload for `Supervised`, of the state for `Scripted`.
        reduction: "mean" (weighted by what the batch counts on each rank), "sum", "max" or "min".

    Raises:
        TypeError: `measure` is no function.
        ValueError: the reduction is another one.
    """

    measure: Callable[[Any], Any] = attrs.field()
    reduction: Reduction = attrs.field(default="mean", kw_only=True)

    @measure.validator
    def _check_measure(self, _: object, value: object) -> None:
        if not callable(value):
            raise TypeError(f"measure={value!r}: give a function that measures")

    @reduction.validator
    def _check_reduction(self, _: object, value: object) -> None:
        if value not in get_args(Reduction):
            raise ValueError(f"reduction={value!r}: there are {', '.join(get_args(Reduction))}")

    def __call__(self, measured: Any) -> Any:
        return self.measure(measured)


def reductions_of(sensors: Mapping[str, object]) -> Mapping[str, Reduction]:
    """The reduction of each sensor that declares one."""
    return {name: sensor.reduction for name, sensor in sensors.items() if isinstance(sensor, Sensor)}


def reduction_of(fact: str, declared: Mapping[str, Reduction]) -> Reduction:
    """How this fact is reduced: a save that failed on one rank failed."""
    return "max" if fact.startswith(UNSAVED) else {**declared, **REDUCTIONS}.get(fact, "mean")


def reduced(how: Reduction, given: Sequence[Weighed]) -> float:
    """One number of those that ranks gave, at least one.

    A NaN on one rank is never lost: a maximum and a minimum are NaN too.

    >>> reduced("mean", [(1.0, 3), (5.0, 1)]), reduced("max", [(1.0, 3), (5.0, 1)]), reduced("min", [(1.0, 1)])
    (2.0, 5.0, 1.0)
    """
    values = [value for value, _ in given]
    if how == "mean":
        return weighted_mean(given)
    if how == "sum":
        return exact_sum(values)
    if any(map(math.isnan, values)):
        return math.nan
    return max(values) if how == "max" else min(values)


def weighted_mean(given: Sequence[Weighed]) -> float:
    """The mean by weight; of one value on all ranks that value, exactly. Where all weigh nothing, each counts the same.

    >>> weighted_mean([(0.1, 1), (0.1, 2)]), weighted_mean([(1.0, 0), (2.0, 0)])
    (0.1, 1.5)
    """
    weighing = [(value, weight) for value, weight in given if weight] or [(value, 1.0) for value, _ in given]
    if len({value for value, _ in weighing}) == 1:
        return weighing[0][0]
    if not all(math.isfinite(value) for value, _ in weighing):
        return sum(value for value, _ in weighing)
    total = exact_sum([weight for _, weight in weighing])
    mean = exact_sum([value * weight for value, weight in weighing]) / total
    if math.isfinite(mean):
        return mean
    return exact_sum([value * (weight / total) for value, weight in weighing])  # the products are beyond a float


def exact_sum(values: Sequence[float]) -> float:
    """The sum, rounded once; infinite where it is beyond a float.

    >>> exact_sum([0.1] * 10), exact_sum([1e308, 1e308])
    (1.0, inf)
    """
    if all(map(math.isfinite, values)):
        try:
            return math.fsum(values)
        except OverflowError:
            pass
    return sum(values)
