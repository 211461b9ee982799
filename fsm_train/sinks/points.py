"""What trackers are told: numbers at a step, and the settings of a training.

Rule of this file: pure functions of states and of declarations, so that a log gives the same as the training did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set

import attrs

from ..core.facts import asked_at
from ..core.phase import BATCH_PHASES, Phase
from ..core.state import Hyper, Plan, State
from ..encoding import Json, encode
from ..wording import as_typed

Setting = bool | int | float | str
"""What trackers have as a parameter of a run."""


@attrs.frozen
class Point:
    """Numbers that were measured at one place of a training.

    Attributes:
        phase: where: EPOCH_END, VALID_END for a validation within an epoch, or a phase of a batch.
        epoch: the number of the epoch, from 1; 0 for a validation before the first one.
        step: optimizer steps so far: the axis of trackers.
        iteration: training batches so far.
        values: by name.
    """

    phase: Phase
    epoch: int
    step: int
    iteration: int
    values: Mapping[str, float]


def point_of_epoch(state: State, hyper: Mapping[str, Hyper]) -> Point:
    """What is known at EPOCH_END.

    Those of a validation are among them if it is of the weights at this step: a number stands where it was measured.

    Args:
        state: at EPOCH_END.
        hyper: the hyper-parameters that are shown with an epoch.
    """
    validated = state.validated_at == state.iteration
    metrics = {name: value for name, value in state.metrics.items() if validated or not name.startswith("valid_")}
    return Point(state.phase, state.epoch, state.step, state.iteration, {**metrics, **dict(_by_group(hyper))})


def point_of_validation(state: State) -> Point | None:
    """What is known at VALID_END; None at the end of an epoch, since EPOCH_END follows, and if nothing was measured."""
    values = {name: value for name, value in state.metrics.items() if name.startswith("valid_")}
    if state.batches_over or not values:
        return None
    return Point(state.phase, state.epoch + (state.batch > 0), state.step, state.iteration, values)


def point_of_batch(state: State, facts: Set[str]) -> Point | None:
    """What was measured at a phase of a batch; None if nothing was. With players a name begins with who played."""
    whose = f"{state.player}_" if state.player else ""
    here = [fact for fact in sorted(facts) if fact in state.facts and asked_at(fact) is state.phase]
    values = {f"{whose}{fact}": state.facts[fact] for fact in here}
    return Point(state.phase, state.epoch + 1, state.step, state.iteration, values) if values else None


def phases_of(facts: Iterable[str]) -> tuple[Phase, ...]:
    """The phases at which these facts are asked for, in the order of a batch."""
    return tuple(sorted({asked_at(fact) for fact in facts}, key=list(Phase).index))


def is_before(point: Point, state: State) -> bool:
    """Whether a training that resumes with this state had come past the point; else it comes there again."""
    if point.step > state.step:
        return False
    if point.phase is Phase.EPOCH_END:
        return point.epoch <= state.epoch
    if point.iteration != state.iteration:
        return point.iteration < state.iteration
    if point.phase in BATCH_PHASES:  # at BATCH_END the batch is counted, before it is not; or the batches are over
        return point.phase is Phase.BATCH_END or state.batches_over
    return state.validated_at == state.iteration


def shown_hyper(hyper: Mapping[str, Hyper], shown: Iterable[str]) -> dict[str, Hyper]:
    """The hyper-parameters of these names; with several optimizers also as `G.lr`."""
    shown = frozenset(shown)
    return {name: value for name, value in hyper.items() if name in shown or name.rpartition(".")[2] in shown}


def _by_group(hyper: Mapping[str, Hyper]) -> Iterator[tuple[str, float]]:
    """Each number with a name; those of parameter groups as lr/0, lr/1."""
    for name, value in hyper.items():
        if isinstance(value, tuple):
            yield from ((f"{name}/{group}", part) for group, part in enumerate(value))
        else:
            yield name, value


def settings(
    plan: Plan,
    hyper: Mapping[str, Hyper],
    callbacks: Iterable[tuple[str, Mapping[str, Json]]],
    own: Mapping[str, object] | None = None,
) -> dict[str, Setting]:
    """The plan, the first hyper-parameters and the parameters of the callbacks, as trackers have them: a flat mapping.

    >>> settings(Plan(epochs=3), {"lr": 0.1}, [("early_stopping", {"patience": 2, "monitor": "valid_loss"})])
    {'plan.epochs': 3, 'hyper.lr': 0.1, 'callbacks': 'early_stopping', 'early_stopping.patience': 2, \
'early_stopping.monitor': 'valid_loss'}

    Args:
        plan: how long to train.
        hyper: the hyper-parameters at the start.
        callbacks: by name, with their parameters as `encode` gives them.
        own: further ones of the user, which keep their names.
    """
    declared = tuple(callbacks)
    named: dict[str, Json] = {f"plan.{name}": encode(value) for name, value in attrs.asdict(plan).items()}
    named |= {f"hyper.{name}": encode(value) for name, value in _by_group(hyper)}
    named["callbacks"] = ", ".join(name for name, _ in declared)
    for callback, params in declared:
        named |= {f"{callback}.{name}": value for name, value in params.items()}
    named |= {name: encode(value) for name, value in (own or {}).items()}
    return {name: _setting(value) for name, value in named.items() if value is not None}


def _setting(value: Json) -> Setting:
    if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return as_typed(value)
