"""Schedules: functions of the progress of a training, as plain values.

A schedule is a frozen record. Called with the progress (finished steps or epochs, as the caller
counts), it returns a factor of the optimizer's own value, so that 1.0 leaves that as it is. Its repr is
the call that makes it, and schedules combine:

>>> rate = warmup(100).then(cosine(2_000, floor=0.1)) * 0.5
>>> rate
0.5 * warmup(100).then(cosine(2000, floor=0.1))
>>> rate(100), rate(1_100), rate(1_000_000)
(0.5, 0.275, 0.05)

Rule of these files: functions of progress alone. A schedule has no state, so there is none to save,
and each holds its last value when it is over.
"""

from .compose import Absolute, Chain, Product, Schedule, absolute, constant
from .kinds import (
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    linear,
    multistep,
    one_cycle,
    piecewise,
    polynomial,
    step,
    time_decay,
    warmup,
)

__all__ = [
    "Absolute",
    "Chain",
    "Product",
    "Schedule",
    "absolute",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "linear",
    "multistep",
    "one_cycle",
    "piecewise",
    "polynomial",
    "step",
    "time_decay",
    "warmup",
]
