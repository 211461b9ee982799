"""A stop that a larger patience would have spared.

Rule of this file: whether the metric was still improving is judged by its curve; what a larger patience would have
done is asked of `what_if`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from statistics import median
from typing import Any

from ..eventlog.counterfactual import what_if
from ..eventlog.errors import LogError
from ..eventlog.from_header import callback_from_spec
from .curves import Observations
from .findings import Evidence, Finding
from .statistics import LIKELY, noise, rounding, slope, trend

LEAST_CHECKS = 8
"""The least number of epochs with the metric for a judgement."""

ILLNESS = "stopped too early"


def stopped_too_early(log: str | PathLike[str], training: Observations) -> Finding | None:
    """`early_stopping` ended the training while its metric still improved, slower than its noise lets see.

    Raises:
        LogError: the log cannot be read.
    """
    if training.stop is None:
        return None
    line, spec = training.stop
    try:
        params: Mapping[str, Any] = callback_from_spec(spec).params
    except Exception as error:  # the factory refuses what it was never given in its own way
        raise LogError(
            f"the settings of {spec['name']!r:.80}, which stopped it, are none: {error}", path=fspath(log), line=line
        ) from error
    curve = training.curve(params["monitor"])
    patience = max(params["patience"], 1)
    sign = -1.0 if params["mode"] == "max" else 1.0
    if not still_improves([sign * point.value for point in curve], patience):
        return None
    for larger in (2 * patience, 3 * patience, 5 * patience):
        answer = what_if(log, [callback_from_spec(spec, patience=larger)])
        if answer.verdict == "censored":
            return Finding(
                ILLNESS,
                "likely",
                f"{spec['name']} stops after epoch {curve[-1].epoch} with patience={params['patience']}, while "
                f"{params['monitor']} still improves; with patience={larger} the training would still be running",
                (curve[0], Evidence(curve[-1].name, curve[-1].value, curve[-1].epoch, line)),
                f"{spec['factory'].rpartition('.')[2]}(patience={larger}), or a metric with less noise: more "
                "validation data, the average weights of ema()",
            )
    return None


def still_improves(values: Sequence[float], patience: int) -> bool:
    """Whether a curve still falls at its end, so slowly that its noise hides it for `patience` values.

    >>> still_improves([9.0, 8.8, 8.3, 8.2, 7.6, 7.5, 7.1, 6.6, 6.4, 6.3, 5.8, 5.9], patience=1)
    True
    >>> still_improves([10.0, 8.0, 6.0, 4.0, 3.0, 3.0, 3.1, 3.0, 2.9, 3.0, 3.1, 3.0], patience=3)
    False

    Args:
        values: of a metric of which smaller is better; the last are those at which the training stopped.
        patience: the number of values in a row without a new best at which it stopped.
    """
    recent = values[-max(12, 4 * (patience + 1)) :]
    if len(recent) < LEAST_CHECKS or not all(map(math.isfinite, recent)):
        return False
    half = recent[len(recent) // 2 :]
    hidden = -slope(recent) * patience <= 4 * noise(recent) + rounding(recent)
    since_best = median(recent[-patience:]) - min(recent)
    return trend(recent) <= -LIKELY and trend(half) <= -1.0 and hidden and since_best <= 3 * noise(recent)
