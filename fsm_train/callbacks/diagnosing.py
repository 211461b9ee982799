"""Say what is wrong with a training while it is under way.

Rule of this file: it collects what a state shows. What that means is said by the rules of `fsm_train.diagnosis`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from ..core.callback import Callback, on, strict_factory
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from ..diagnosis.curves import Count, FinishedEpoch, Observations, thinned
from ..diagnosis.findings import Evidence
from ..diagnosis.loss_rules import LEAST_EPOCHS
from ..diagnosis.rates import rate_of
from ..diagnosis.rules import RULES, judged
from ..diagnosis.spikes import AFTER, BEFORE, OF_FALL, has_spike


@attrs.frozen
class Symptoms:
    """What is remembered: counts of epochs, and what has been said.

    Attributes:
        epochs: how many were seen.
        step: the steps at the end of the last one.
        at_zero: epochs that ended with a learning rate of zero.
        first_at_zero: the first of them, from 1; 0 if there is none.
        stepless: epochs with batches and without a step.
        said: the illnesses that were said, each once.
    """

    epochs: int = 0
    step: int = 0
    at_zero: int = 0
    first_at_zero: int = 0
    stepless: int = 0
    said: tuple[str, ...] = ()


@strict_factory
def diagnosing(*, name: str = "diagnosing") -> Callback[Symptoms]:
    """Say known illnesses of the training as soon as they show: a loss that does not fall, NaN, overfitting, …

    At EPOCH_END, each illness once, as the `reason` of its answer: it stands in the log, `progress()` and
    `fsm-train tail` show it, and nothing else follows from it. The rules are those of `diagnose(log)`, as far as the
    metrics of epochs, the learning rate and the steps show it; gradients and times are judged in the log alone. Curves
    are judged at epochs 5, 7, 10, 15, … (each half as many again), since who asks often enough finds something by
    chance. A loss that explodes in the first epoch and stays at chance then has the curve of one that learned all in
    it: only the loss of the first batch tells them apart, in a log with `record("loss")`.

    >>> from fsm_train.testing import at, drive
    >>> flat = [{"train_loss": 2.3}] * 7
    >>> states = [at(Phase.EPOCH_END, epoch=n, step=n, history=flat[:n], **flat[0]) for n in range(1, 8)]
    >>> [answer.reason.partition(";")[0] for answer in drive(diagnosing(), states) if answer.reason]
    ['loss does not fall (possible): train_loss stays at about 2.3 until epoch 5']
    """

    @on(Phase.EPOCH_END, memory=Symptoms())
    def diagnosing(state: State, before: Symptoms) -> Transition:
        now = _counted(state, before)
        training = _observations(state, now)
        due = [illness for illness, rule in RULES.items() if rule.exact or _judges_curves(state.epoch)]
        findings = judged(training, (illness for illness in due if illness not in now.said)).findings
        said = (*now.said, *(finding.illness for finding in findings))
        reason = " | ".join(finding.sentence for finding in findings)
        return Transition(memory=attrs.evolve(now, said=said), reason=reason)

    return diagnosing


def _judges_curves(epoch: int) -> bool:
    due = LEAST_EPOCHS
    while due < epoch:
        due = due * 3 // 2
    return due == epoch


def _counted(state: State, before: Symptoms) -> Symptoms:
    at_zero = rate_of(state.hyper) == 0.0
    return attrs.evolve(
        before,
        epochs=before.epochs + 1,
        step=state.step,
        at_zero=before.at_zero + at_zero,
        first_at_zero=before.first_at_zero or state.epoch * at_zero,
        stepless=before.stepless + (state.batch > 0 and state.step == before.step),
    )


def _observations(state: State, symptoms: Symptoms) -> Observations:
    history = state.history or (state.metrics,)
    first = max(len(history) - BEFORE, 0)
    curves = thinned(history) if _judges_curves(state.epoch) else enumerate(history[first:], first)
    epochs = tuple(FinishedEpoch(index + 1, metrics) for index, metrics in curves)
    losses = [name for name in state.metrics if name.endswith("loss")]
    spikes = {name: found for name in losses if (found := _spike(state, name)) is not None}
    zero = Evidence("lr", 0.0, symptoms.first_at_zero) if symptoms.at_zero else None
    stepless = Evidence("steps", state.step, state.epoch) if symptoms.stepless else None
    return Observations(
        epochs,
        spikes=spikes,
        nonfinite=_nonfinite(state.metrics, state.epoch),
        zero_rate=Count(symptoms.at_zero, symptoms.epochs, first=zero, unit="epoch"),
        stepless=Count(symptoms.stepless, symptoms.epochs, first=stepless, unit="epoch"),
        has_turns=bool(state.players),
    )


def _nonfinite(metrics: Mapping[str, float], epoch: int) -> Mapping[str, Evidence]:
    return {name: Evidence(name, value, epoch) for name, value in metrics.items() if not math.isfinite(value)}


def _spike(state: State, name: str) -> Evidence | None:
    """The loss of two epochs ago, if it is a spike."""
    window = [metrics.get(name, math.nan) for metrics in state.history[-(BEFORE + 1 + AFTER) :]]
    start = state.history[0].get(name, math.nan) if state.history else math.nan
    if not all(map(math.isfinite, (start, *window))) or not has_spike(window, start, OF_FALL["epoch"]):
        return None
    return Evidence(name, window[-1 - AFTER], state.epoch - AFTER)
