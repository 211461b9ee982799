"""Illnesses that the curves of losses show.

Rules of this file: a rule is a pure function of what was seen, and gives a finding or None. A loss may be shifted and
scaled (its unit, a constant term) without another finding: values are compared with each other and with their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import attrs

from ..wording import short_number
from .curves import Observations, values_of
from .findings import Evidence, Finding
from .statistics import LIKELY, first_values, last_values, noise, rounding, trend

LEAST_EPOCHS = 5
"""The least number of epochs for a judgement about a curve of epochs."""

LEAST_BATCHES = 32
"""The number of batches, the last that are known, whose noise is that of a loss of a batch."""

LEAST_BLOCK, MOST_BLOCKS = 8, 20
"""How many losses of batches make a point of a curve at least, and how many points such a curve has about."""

TRAIN = "train_loss"

Pair = tuple[list[Evidence], list[Evidence]]


def losses_of(training: Observations) -> list[str]:
    """The names of the losses of validations: valid_loss, or several valid_NAME_loss."""
    return [name for name in training.metrics if name.startswith("valid_") and name.endswith("loss")]


def pairs_of(training: Observations) -> list[Pair]:
    """The training loss with each loss of a validation, at the epochs that measured both."""
    train = {point.epoch: point for point in training.curve(TRAIN)}
    found = []
    for name in losses_of(training):
        both = [(train[point.epoch], point) for point in training.curve(name) if point.epoch in train]
        found.append(([one for one, _ in both], [other for _, other in both]))
    return [pair for pair in found if len(pair[0]) >= LEAST_EPOCHS]


def falls(values: Sequence[float]) -> bool:
    """Whether a curve falls: by its trend, or from its beginning to its end by much more than its noise."""
    fall = values[0] - median(last_values(values))
    return trend(values) <= -LIKELY or fall > 3 * noise(values) + rounding(values)


# ------------------------------------------------------------------------------- loss does not fall


def loss_does_not_fall(training: Observations) -> Finding | None:
    """The training loss does not fall over the epochs, or rises; in a training of few epochs, over its batches.

    Where losses of batches were recorded, a training loss that stays where an untrained model was does not fall either,
    whatever came in between.
    """
    curve = training_curve(training)
    values = values_of(curve)
    if training.has_turns or len(values) < LEAST_EPOCHS:
        return None
    name = curve[0].name
    late = median(last_values(values))
    spread = noise(values) + rounding(values)
    if late - values[0] > 4 * spread and trend(values) >= LIKELY:
        return Finding(
            "loss does not fall",
            "likely",
            f"{name} rises from {short_number(values[0])} to {short_number(late)} by epoch {curve[-1].epoch}",
            (curve[0], curve[-1]),
            "a lower learning rate, by a factor of 10 at first; check the sign of the loss, and that the training data "
            "are shuffled",
        )
    no_better = _no_better_than_untrained(training, values)
    if falls(values) and not no_better:
        return None
    return Finding(
        "loss does not fall",
        "likely" if len(values) >= 2 * LEAST_EPOCHS or no_better else "possible",
        f"{name} stays at about {short_number(late)} until epoch {curve[-1].epoch}"
        + (", no lower than that of the first batch" if no_better else ""),
        (training.untrained if no_better and training.untrained else curve[0], curve[-1]),
        "another learning rate (find_lr suggests one: too high bounces, too low creeps); check that the parameters are "
        "in the optimizer and not frozen, that inputs and targets belong together and are shuffled, and overfit a "
        "single batch on purpose",
    )


def training_curve(training: Observations) -> tuple[Evidence, ...]:
    """The training loss by epochs, or, of few epochs, the medians of some batches each; it may have too few points."""
    of_epochs, losses = training.curve(TRAIN), training.facts.get("loss", ())
    if len(of_epochs) >= LEAST_EPOCHS or len(losses) < LEAST_EPOCHS * LEAST_BLOCK:
        return of_epochs
    size = max(LEAST_BLOCK, len(losses) // MOST_BLOCKS)
    blocks = (losses[i : i + size] for i in range(0, len(losses) - size + 1, size))
    return tuple(
        attrs.evolve(block[-1], name=f"loss (median of {size})", value=median(values_of(block))) for block in blocks
    )


def _no_better_than_untrained(training: Observations, values: Sequence[float]) -> bool:
    """Whether the loss becomes flat, no lower than that of the first batch."""
    if training.untrained is None:
        return False
    of_batches = noise(values_of(training.facts.get("loss", ()))[-LEAST_BATCHES:])
    late = values[len(values) // 2 :]  # the first epochs may come down from a jump that the first batches made
    flat = trend(values[1:]) > -1.0 or (len(late) >= LEAST_EPOCHS and trend(late) > -1.0)
    return flat and median(late) >= training.untrained.value - of_batches


# ---------------------------------------------------------------------------------- spikes, NaN


def spikes(training: Observations) -> Finding | None:
    """A loss jumps far above its neighbours and comes back."""
    if not training.spikes:
        return None
    of_epochs = [name for name in training.spikes if name in training.metrics]
    name = next(iter(of_epochs or training.spikes))
    highest = training.spikes[name]
    return Finding(
        "spikes",
        "likely" if of_epochs else "possible",
        f"{name} jumps to {short_number(highest.value)} and comes back",
        (highest,),
        "clip_grad_norm(1.0), a lower learning rate or a longer warmup; look at the batches there (a damaged sample, "
        "a wrong label)",
    )


def not_finite(training: Observations) -> Finding | None:
    """A loss, a metric or a gradient is NaN or infinite."""
    if not training.nonfinite:
        return None
    first = min(training.nonfinite.values(), key=lambda point: (point.epoch, point.line or 0))
    return Finding(
        "not finite",
        "certain",
        f"{first.name} is {first.value} in epoch {first.epoch}, for the first time",
        (first,),
        "stop_on_nonfinite() or skip_nonfinite() to keep it from the weights; look for NaN in the inputs, log or "
        "division by zero in the loss, a rate that is too high; clip_grad_norm(1.0)",
    )


# -------------------------------------------------------------------------------- validation


def overfitting(training: Observations) -> Finding | None:
    """The loss of a validation has its best behind it and rises, while the training loss still falls."""
    for train, valid in pairs_of(training):
        if not _worse_from_the_start(train, valid):
            values = values_of(valid)
            best = values.index(min(values))
            if _rises_since(best, values, values_of(train)):
                name, late = valid[best].name, median(last_values(values[best:]))
                return Finding(
                    "overfitting",
                    "likely",
                    f"{name} rises from {short_number(values[best])} to {short_number(late)} since epoch "
                    f"{valid[best].epoch}, while {TRAIN} falls",
                    (valid[best], valid[-1], train[-1]),
                    "early_stopping() with restore_best(); more data or augmentation, weight decay, dropout, or a "
                    "smaller model",
                )
    return None


def _rises_since(best: int, valid: Sequence[float], train: Sequence[float]) -> bool:
    after = valid[best:]
    if len(after) < LEAST_EPOCHS:
        return False
    around = median(valid[max(best - 1, 0) : best + 2])  # the best one is best by chance too
    rise = median(last_values(after)) - around
    matters = rise > 4 * noise(after) + rounding(valid) and rise > 0.1 * max(train[0] - min(train), 0.0)
    return matters and trend(after) >= LIKELY and trend(train[best:]) <= -LIKELY


def validation_worse_from_the_start(training: Observations) -> Finding | None:
    """The loss of a validation is far above the training loss from the first epoch on, and never comes near."""
    for train, valid in pairs_of(training):
        if _worse_from_the_start(train, valid):
            return Finding(
                "validation worse from the start",
                "likely",
                f"{valid[0].name} is {short_number(valid[0].value)} after the first epoch and "
                f"{short_number(valid[-1].value)} after the last, while {TRAIN} falls from "
                f"{short_number(train[0].value)} to {short_number(train[-1].value)}",
                (valid[0], train[0], valid[-1], train[-1]),
                "compare the two data sets: the same preprocessing, the right labels, drawn from the same "
                "distribution, training data shuffled; check layers that act otherwise in a validation, such as batch "
                "norm",
            )
    return None


def _worse_from_the_start(train: Sequence[Evidence], valid: Sequence[Evidence]) -> bool:
    """Whether the validation never gets better than it was at first, and is far behind from then on.

    As with labels that do not belong to the inputs, or with data of another kind.
    """
    ours, theirs = values_of(train), values_of(valid)
    learned = ours[0] - median(last_values(ours))
    if learned <= 6 * max(noise(ours), noise(theirs)) + rounding(ours):
        return False
    gaps = [other - own for own, other in zip(ours, theirs, strict=True)]
    never_better = min(theirs) >= theirs[0] - 0.1 * learned
    ends_apart = median(last_values(gaps)) >= 0.5 * learned
    return never_better and ends_apart and gaps[0] > 0 and median(first_values(gaps)) >= 0.25 * learned
