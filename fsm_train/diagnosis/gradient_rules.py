"""Illnesses of gradients, where their norms were recorded.

Rule of this file: a norm has the unit of the loss over that of the weights, so that norms are compared with each
other: over time, and between layers. Recorded are `grad_norm`, and facts of one's own whose names begin with it, such
as `grad_norm_first` for a layer.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from statistics import median

from ..wording import short_number
from .curves import Observations, values_of
from .findings import Evidence, Finding
from .loss_rules import TRAIN, loss_does_not_fall

GRADIENTS = "grad_norm"

LEAST_NORMS = 8
"""The least number of norms for a judgement, unless something is not finite soon."""

VANISHED = 1e-4
"""The norm of a layer, as a share of the largest layer's, below which nothing is learned there."""

TINY = 1e-5
"""The norm of all gradients, as a share of the loss, below which nothing is learned if the loss does not fall."""

EXPLODED = 100.0
"""How many times larger than it usually was a norm is when it has exploded."""


def norms_of(training: Observations) -> Mapping[str, Sequence[Evidence]]:
    """The recorded norms by name."""
    least = 2 if training.nonfinite else LEAST_NORMS
    found = {name: points for name, points in training.facts.items() if name.startswith(GRADIENTS)}
    return {name: points for name, points in found.items() if len(points) >= least}


def gradients_vanish(training: Observations) -> Finding | None:
    """Gradients are next to nothing: in a layer beside the others, or in all of a model whose loss does not fall."""
    norms = norms_of(training)
    usual = {name: median(values_of(points)) for name, points in norms.items()}
    smallest = min((name for name in usual if name != GRADIENTS), key=usual.__getitem__, default="")
    largest = max(usual.values(), default=0.0)
    if smallest and usual[smallest] < VANISHED * largest:
        share = f"{short_number(usual[smallest] / largest, 2)} of the largest" if usual[smallest] else "zero"
        return _vanishing(f"{smallest} is {share}", norms[smallest])
    losses = [abs(value) for value in values_of(training.curve(TRAIN))]
    if GRADIENTS in usual and losses and usual[GRADIENTS] <= TINY * median(losses) and loss_does_not_fall(training):
        what = f"{GRADIENTS} is {short_number(usual[GRADIENTS])}, and the loss stays at {short_number(median(losses))}"
        return _vanishing(what, norms[GRADIENTS])
    return None


def _vanishing(what: str, norms: Sequence[Evidence]) -> Finding:
    return Finding(
        "gradients vanish",
        "likely",
        what,
        (norms[0], norms[-1]),
        "skip connections, normalisation, ReLU or GELU instead of sigmoid and tanh, an initialisation for the "
        "activation (kaiming, xavier); check that nothing detaches the graph, and that outputs are not saturated",
    )


def gradients_explode(training: Observations) -> Finding | None:
    """Norms of gradients become a hundred times what they were, and far more than they were at first.

    Either twice, or on the way to a loss or a gradient that is not finite.
    """
    for name, points in norms_of(training).items():
        untrained = max(point.value for point in points[:LEAST_NORMS])
        large = [point for point in _far_above_before(points) if point.value > 10 * untrained]
        if len(large) < 2:
            large = _last_before_infinity(points) if training.nonfinite else []
        if large:
            highest = max(large, key=lambda point: point.value)
            what = f"{name} reaches {short_number(highest.value)}, and is {short_number(points[0].value)} at first"
            return Finding(
                "gradients explode",
                "likely",
                what,
                (points[0], highest),
                "clip_grad_norm(1.0), a lower learning rate with a warmup, a smaller initialisation, normalisation",
            )
    return None


def _last_before_infinity(points: Sequence[Evidence]) -> list[Evidence]:
    """The last finite norms, if they are far above what was usual."""
    usual = min(points[0].value, median(values_of(points)))
    return [point for point in points[-3:] if point.value > EXPLODED * usual > 0]


def _far_above_before(points: Sequence[Evidence]) -> list[Evidence]:
    """The norms that are far above the median of all before them."""
    found, before = [], sorted(point.value for point in points[:LEAST_NORMS])
    for point in points[LEAST_NORMS:]:
        if point.value > EXPLODED * before[len(before) // 2]:
            found.append(point)
        bisect.insort(before, point.value)
    return found
