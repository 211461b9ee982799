"""Illnesses of steps and of time: rates at zero, steps that are not applied, epochs that cost more and more.

Rule of this file: counts are facts, and what is counted from them is certain. Times are noisy, and judged as curves.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from ..wording import short_number
from .curves import Observations
from .findings import Evidence, Finding
from .statistics import first_values, last_values, trend

LEAST_STEPS = 4
"""The least number of steps for a judgement about their shares."""

LEAST_EPOCHS_OF_TIME = 8
"""The least number of epochs for a judgement about what they cost."""


def rate_at_zero(training: Observations) -> Finding | None:
    """Most steps are taken with a learning rate of zero, or of less than a millionth of the highest."""
    steps = training.zero_rate
    if steps.first is None or steps.of < LEAST_STEPS or steps.share <= 0.5:
        return None
    return Finding(
        "rate at zero",
        "certain",
        f"the learning rate is zero for {steps}",
        (steps.first,),
        "describe(callbacks, state) says where a schedule ends before the plan: count its steps again, or in epochs "
        "with by='epoch'",
    )


def steps_held_back(training: Observations) -> Finding | None:
    """Steps are not applied: by a gradient scaler, beyond its first search for a scale, or in whole epochs."""
    if training.stepless.first is not None:
        return Finding(
            "steps held back",
            "certain",
            f"{training.stepless} have batches and no step",
            (training.stepless.first,),
            "look at what skips them: skip_nonfinite, a gradient scaler, or a callback that raises SKIP_STEP",
        )
    held = training.held_back
    late_share = held.late / (held.of / 2) if held.of else 0.0
    if held.first is None or held.times < 3 or late_share < 0.1:
        return None
    return Finding(
        "steps held back",
        "certain",
        f"{held} are not applied, {held.late} of them in the second half",
        (held.first,),
        "gradients overflow in float16: clip_grad_norm(1.0), a lower learning rate, or "
        "mixed_precision('bfloat16'), which needs no scaler",
    )


def epochs_cost_more(training: Observations) -> Finding | None:
    """An epoch takes longer and longer, per batch."""
    costs = costs_of(training)[1:]  # the first one warms up
    if len(costs) < LEAST_EPOCHS_OF_TIME:
        return None
    values = [cost.value for cost in costs]
    before, after = median(first_values(values)), median(last_values(values))
    if trend(values) < 3.0 or after < 1.5 * before:
        return None
    return Finding(
        "epochs cost more and more",
        "likely",
        f"a batch takes {short_number(1000 * before)} ms at first and {short_number(1000 * after)} ms at last",
        (costs[0], costs[-1]),
        "look for what grows: lists that keep tensors with their graph (append loss.item() instead), hooks or "
        "callbacks that are added again each epoch, a file that is read from its beginning, memory that is swapped",
    )


def costs_of(training: Observations) -> list[Evidence]:
    """The seconds per batch of each epoch whose time was recorded, and that of the one before."""
    timed = [(epoch, epoch.elapsed) for epoch in training.epochs if epoch.elapsed is not None]
    return [
        Evidence("seconds per batch", (now - then) / (epoch.iteration - before.iteration), epoch.epoch, epoch.line)
        for (before, then), (epoch, now) in pairwise(timed)
        if epoch.iteration > before.iteration
    ]
