"""All rules by the illness that they look for, and what each needs.

Rule of this file: a table. A rule is in the file of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs

from .curves import Observations
from .findings import Diagnosis, Finding
from .gradient_rules import LEAST_NORMS, gradients_explode, gradients_vanish, norms_of
from .loss_rules import (
    LEAST_EPOCHS,
    TRAIN,
    loss_does_not_fall,
    not_finite,
    overfitting,
    pairs_of,
    spikes,
    training_curve,
    validation_worse_from_the_start,
)
from .spikes import AFTER, LEAST_BEFORE
from .step_rules import (
    LEAST_EPOCHS_OF_TIME,
    LEAST_STEPS,
    costs_of,
    epochs_cost_more,
    rate_at_zero,
    steps_held_back,
)


@attrs.frozen
class Rule:
    """A known illness.

    Attributes:
        look: gives the finding, or None.
        missing: says why it cannot be looked for in what was seen; "" if it can.
        exact: whether it judges counts, so that it can be asked at any time; other rules judge curves, and asked again
            and again they would find something by chance.
    """

    look: Callable[[Observations], Finding | None]
    missing: Callable[[Observations], str]
    exact: bool = False


def _train_curve(training: Observations) -> str:
    if training.has_turns:
        return "losses of players that take turns need not fall"
    few = f"there are fewer than {LEAST_EPOCHS} epochs with a finite {TRAIN}, and few losses of batches: record('loss')"
    return few if len(training_curve(training)) < LEAST_EPOCHS else ""


def _both_curves(training: Observations) -> str:
    few = f"there are fewer than {LEAST_EPOCHS} epochs with a finite {TRAIN} and a finite loss of a validation"
    return "" if pairs_of(training) else few


def _epochs_or_losses(training: Observations) -> str:
    few = f"there are fewer than {LEAST_BEFORE + AFTER + 1} epochs, and few losses of batches: record('loss')"
    return "" if max(len(training.epochs), len(training.facts.get("loss", ()))) > LEAST_BEFORE + AFTER else few


def _steps(training: Observations) -> str:
    few = f"there are fewer than {LEAST_STEPS} {training.zero_rate.unit}s with a learning rate"
    return "" if training.zero_rate.of >= LEAST_STEPS else few


def _norms(training: Observations) -> str:
    return "" if norms_of(training) else f"there are fewer than {LEAST_NORMS} norms of gradients: record('grad_norm')"


def _times(training: Observations) -> str:
    few = f"there are fewer than {LEAST_EPOCHS_OF_TIME + 2} epochs with their time: EventLog(path, facts={{'elapsed'}})"
    return "" if len(costs_of(training)) > LEAST_EPOCHS_OF_TIME else few


def _nothing(training: Observations) -> str:
    return ""


RULES: Mapping[str, Rule] = {
    "not finite": Rule(not_finite, _nothing, exact=True),
    "rate at zero": Rule(rate_at_zero, _steps, exact=True),
    "steps held back": Rule(steps_held_back, _nothing, exact=True),
    "loss does not fall": Rule(loss_does_not_fall, _train_curve),
    "spikes": Rule(spikes, _epochs_or_losses, exact=True),
    "validation worse from the start": Rule(validation_worse_from_the_start, _both_curves),
    "overfitting": Rule(overfitting, _both_curves),
    "gradients vanish": Rule(gradients_vanish, _norms),
    "gradients explode": Rule(gradients_explode, _norms),
    "epochs cost more and more": Rule(epochs_cost_more, _times),
}
"""The rules, in the order of the findings: first what explains the others."""


def judged(training: Observations, illnesses: Iterable[str] = RULES) -> Diagnosis:
    """What the rules for these illnesses say, by default all rules.

    >>> from .curves import FinishedEpoch
    >>> epochs = tuple(FinishedEpoch(epoch, {"train_loss": 2.0}) for epoch in range(1, 9))
    >>> [finding.illness for finding in judged(Observations(epochs))]
    ['loss does not fall']
    """
    asked = tuple(illnesses)
    missing = {illness: why for illness in asked if (why := RULES[illness].missing(training))}
    looked = (RULES[illness].look(training) for illness in asked if illness not in missing)
    return Diagnosis(tuple(finding for finding in looked if finding is not None), missing)
