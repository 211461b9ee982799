"""How long a plan is, as far as that is known before the training begins, and which schedules do not fit it.

Rule of this file: what is not known is None, and of what is not known nothing is said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from .callback import Callback
from .state import Draft

TOLERANCE = 0.1
"""The share of the plan by which a schedule may be shorter or longer than it without a note."""

VANISHED = 1e-6
"""A schedule without an end that is below this share of its first value half-way through the plan is noted."""


@attrs.frozen
class PlannedLength:
    """The length of a plan in each unit that a schedule counts; None where it is not known.

    Attributes:
        step: optimizer steps.
        iteration: training batches.
        epoch: epochs.
        how: what is known of it, in words.
    """

    step: int | None
    iteration: int | None
    epoch: int | None
    how: str


def planned_length(at: Draft, callbacks: Iterable[Callback[Any]] = ()) -> PlannedLength:
    """How long the plan of this training is, as `accumulate`, `limit` and `stop_after` change it.

    Those are known by the settings in their `params`. What is skipped or stopped on the way is not known before.
    """
    callbacks = tuple(callbacks)
    if any(map(_changes_for_a_part, callbacks)):
        return PlannedLength(None, None, None, "")
    if at.players:
        return _in_turns(at, callbacks)
    epochs, batches = at.plan.epochs, at.batches_per_epoch
    if batches is not None:
        batches = min((batches, *_settings(callbacks, "limit", "batches")))
    limits = [*([] if at.plan.max_steps is None else [at.plan.max_steps]), *_settings(callbacks, "stop_after", "steps")]
    most_steps = min(limits, default=None)
    every: Any = next(iter(_settings(callbacks, "accumulate", "every")), 1)
    drops = any(_settings(callbacks, "accumulate", "drop_last"))
    words = [
        f"{epochs} epochs" if epochs is not None else "",
        f"{batches} batches an epoch" if batches is not None else "",
        f"{every} batches a step" if every != 1 else "",
        f"at most {most_steps} steps" if most_steps is not None else "",
    ]
    how = ", ".join(filter(None, words))
    if not batches:
        steps = most_steps if epochs is None else None
        return PlannedLength(steps, None, epochs if most_steps is None else None, how)
    step = done = 0
    for length, batches_per_step in _stretches(every, epochs):
        per_epoch = batches // batches_per_step if drops else -(-batches // batches_per_step)
        if most_steps is not None and step + length * per_epoch >= most_steps:
            more = math.ceil((most_steps - step) / per_epoch)
            in_last = most_steps - step - (more - 1) * per_epoch
            iterations = (done + more - 1) * batches + min(in_last * batches_per_step, batches)
            return PlannedLength(most_steps, iterations, done + more, how)
        if length == math.inf:  # windows that are never full: no step is ever taken
            return PlannedLength(None, None, None, how)
        step, done = step + int(length) * per_epoch, done + int(length)
    return PlannedLength(step, done * batches, done, how)


def _in_turns(at: Draft, callbacks: Iterable[Callback[Any]]) -> PlannedLength:
    """Of a training with turns its batches and epochs, if nothing else limits it. What a step is, depends on whose."""
    epochs, batches = at.plan.epochs, at.batches_per_epoch
    if (
        batches is None
        or epochs is None
        or at.plan.max_steps is not None
        or any(_settings(callbacks, "stop_after", "steps"))
    ):
        return PlannedLength(None, None, None, "")
    batches = min((batches, *_settings(callbacks, "limit", "batches")))
    return PlannedLength(None, epochs * batches, epochs, f"{epochs} epochs, {batches} batches an epoch")


def _steps_of(player: object, at: Draft, callbacks: Iterable[Callback[Any]], plan: PlannedLength) -> int | None:
    """The planned steps of one player; None if they are not known, as with windows of several batches."""
    if player not in at.players.names or plan.iteration is None or any(_settings(callbacks, "accumulate", "every")):
        return None
    return at.players.turns_until(str(player), plan.iteration)


def _settings(callbacks: Iterable[Callback[Any]], factory: str, name: str) -> Iterator[Any]:
    """The values, other than None, of this setting of the callbacks that this factory of the library made."""
    for callback in callbacks:
        of_library = callback.factory.startswith("fsm_train.callbacks.")
        if of_library and callback.factory.endswith(f".{factory}") and callback.params[name] is not None:
            yield callback.params[name]


def _changes_for_a_part(callback: Callback[Any]) -> bool:
    """Whether it is one of those that change the length, consulted `during` a part of the training."""
    inner: Any = callback.params.get("callback")
    factory = str(getattr(inner, "factory", ""))
    return factory.endswith((".accumulate", ".limit", ".stop_after")) or (
        factory.endswith(".during") and _changes_for_a_part(inner)
    )


def _stretches(every: int | Mapping[int, int], epochs: int | None) -> Iterator[tuple[float, int]]:
    """Each stretch of epochs with one number of batches per step: its length, and that number."""
    from_epoch = every if isinstance(every, Mapping) else {0: every}
    end = math.inf if epochs is None else epochs
    firsts = [first for first in sorted(from_epoch) if first < end]
    for first, following in itertools.pairwise((*firsts, end)):
        yield following - first, from_epoch[int(first)]


def schedule_notes(callbacks: Iterable[Callback[Any]], at: Draft, workload: object = None) -> list[str]:
    """A sentence for each schedule that ends long before or after the plan, with both lengths.

    A schedule is known by its `span`, in the `params` of a callback that has `by` among them. One that is over before
    the plan is noted only if its last value is not meant to be trained with, which is so of a decay. What a schedule
    does without an end is noted where it has all but vanished half-way through the plan. How long a scheduler of torch
    is, the workload says that makes it.
    """
    callbacks = tuple(callbacks)
    if not any("by" in callback.params for callback in callbacks):
        return []
    plan = planned_length(at, callbacks)
    notes = []
    for callback in callbacks:
        unit = str(callback.params.get("by"))
        length = getattr(plan, unit) if unit in _UNITS else None
        if unit == "step" and (player := callback.params.get("player")):
            length = _steps_of(player, at, callbacks, plan)
        if not length:
            continue
        for text, of_torch in _torch_lengths(callback, workload):
            if note := _misfit_of_torch(of_torch, length):
                notes.append(f"{callback.name}: {text} {note.format(unit=_UNITS[unit], plan=plan.how)}")
        for key, value in callback.params.items():
            schedule = getattr(value, "schedule", value)
            span = getattr(schedule, "span", None)
            if span is not None and (note := _misfit(schedule, span, length)):
                notes.append(f"{callback.name}: {key}={value!r} {note.format(unit=_UNITS[unit], plan=plan.how)}")
    return notes


def _torch_lengths(callback: Callback[Any], workload: object) -> Iterator[tuple[str, tuple[int, int | None]]]:
    """Each scheduler of torch that this callback makes, in words, and its span, as far as that is known."""
    known: Any = getattr(workload, "scheduler_length", None)
    for setting in () if known is None else _settings([callback], "torch_scheduler", "make"):
        makes = [setting]
        if isinstance(setting, Mapping):  # of several optimizers
            makes = [lambda given, name=name, make=make: make(given[name]) for name, make in setting.items()]
        yield from filter(None, map(known, makes))


def _misfit_of_torch(span: tuple[int, int | None], plan: int) -> str:
    """What does not fit between a scheduler of torch and a plan of this length; "" if nothing."""
    shortest, longest = span
    slack = max(1.0, TOLERANCE * plan)
    if longest is not None and longest < plan - slack:
        beyond = f"the last {plan - longest} are beyond its end"
        return f"ends after {longest} {{unit}}, but the plan has {plan} ({{plan}}): {beyond}. {_LENGTH}"
    if shortest > plan + slack:
        return f"needs {shortest} {{unit}}, but the plan has {plan} ({{plan}}): it does not come that far. {_LENGTH}"
    return ""


_LENGTH = "Give it the length of the plan, or take schedule(…, by='training'), which stretches over the plan"
_STRETCH = "Give it the length of the plan, or write schedule(…, by='training'), which stretches it over the plan"
_SMALLER = "Give it smaller numbers, or count in another unit with by="
_UNITS = {"step": "steps", "iteration": "batches", "epoch": "epochs"}


def _misfit(schedule: Any, span: tuple[int, int | None], plan: int) -> str:
    """What does not fit between a schedule and a plan of this length; "" if nothing."""
    shortest, longest = span
    slack = max(1.0, TOLERANCE * plan)
    if longest is not None and longest < plan - slack:
        return (
            f"ends after {longest} {{unit}}, but the plan has {plan} ({{plan}}): the last {plan - longest} "
            f"have its last value, {schedule(longest):.4g}. {_STRETCH}. Where the last value is meant, write "
            f".then(constant({schedule(longest):.4g})) after it"
        )
    if shortest > plan + slack:
        return (
            f"needs {shortest} {{unit}}, but the plan has {plan} ({{plan}}): the training ends at "
            f"{schedule(plan):.4g}. {_STRETCH if schedule.length else _SMALLER}"
        )
    if longest is None and 0 <= schedule(plan // 2) < VANISHED * schedule(0):
        return (
            f"is down to {schedule(plan // 2):.4g} half-way through the plan of {plan} {{unit}} "
            "({plan}). If it is meant to count epochs, write schedule(…, by='epoch')"
        )
    return ""
