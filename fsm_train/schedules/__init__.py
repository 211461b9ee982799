"""Schedules: numbers that follow the progress of a training, as plain values.

A schedule is a frozen record that is called with the progress (finished steps, or epochs: what is
counted is up to the one who calls) and answers with a factor of the optimizer's own value, so that
1.0 leaves it as it is. It reads back as the call that made it, and combines:

>>> rate = warmup(100).then(cosine(2_000, floor=0.1)) * 0.5
>>> rate
0.5 * warmup(100).then(cosine(2000, floor=0.1))
>>> rate(100), rate(1_100), rate(1_000_000)
(0.5, 0.275, 0.05)

Rule of these files: a function of progress alone. No schedule remembers where it was, so none has
anything to save, and each holds its last value when it is over.
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
