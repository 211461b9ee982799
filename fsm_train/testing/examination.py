"""A callback in a simulated training.

A `Training` says what happens, and is what Hypothesis draws and shrinks; `examine` lets the callback take
part in it, and returns each consultation, with notes if they are wanted.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import attrs

from ..core.callback import Callback, on
from ..core.errors import FsmTrainError
from ..core.facts import KNOWN_AT
from ..core.phase import Flag, Phase
from ..core.state import Hyper, State
from ..core.transition import Transition
from ..core.values import FrozenMap
from ..interpreter import iterate, start
from ..worlds.scripted import Scripted
from . import hidden
from .consultation import Consultation, Notes, Raised, ask_closely, ask_plainly
from .json_memory import through_json

ONLOOKERS = ("onlooker before", "onlooker after")
FATE = "fate"
_CALLS = 4  # of run, for a callback that suspends the training itself
_PER_EPOCH = ("train_", "valid_")


@attrs.frozen
class Training:
    """What happens in a simulated training; each sequence is gone through again and again.

    Attributes:
        epochs: of the plan.
        batches: per epoch.
        batch_sizes: of the batches.
        losses: of the batches.
        facts: other facts by name.
        metrics: metrics by name, a value per epoch.
        fate: flags that are raised from elsewhere, each with the iteration in which that happens.
        interrupt_after: a signal comes in after so many operations on the data.
        seed: of the plan.
    """

    epochs: int = 1
    batches: int = 1
    batch_sizes: tuple[int, ...] = (32,)
    losses: tuple[float, ...] = (0.0,)
    facts: Mapping[str, tuple[float, ...]] = attrs.Factory(dict)
    metrics: Mapping[str, tuple[float, ...]] = attrs.Factory(dict)
    fate: tuple[tuple[int, Flag], ...] = ()
    interrupt_after: int = 0
    seed: int = 0


def examine(
    callback: Callback[Any],
    training: Training,
    *,
    hyper: Mapping[str, Hyper],
    without: str | None = None,
    closely: bool = False,
    onlookers: bool = False,
    interrupted: bool = False,
) -> list[Consultation]:
    """Let the callback take part in the training.

    Args:
        callback: who is examined; each time with a fresh copy of its closure.
        training: what happens.
        hyper: the hyper-parameters that there are.
        without: a metric that is never measured.
        closely: whether notes are taken.
        onlookers: whether others are there, before and after it in the list, who only look.
        interrupted: whether the training is suspended and, with memories from a file, gone on with.
    """
    seen: list[Consultation] = []
    decide = hidden.fresh(callback.decide)

    def asked(state: State, memory: object) -> object:
        outcome, notes = (
            ask_closely(callback, decide, state, memory) if closely else (ask_plainly(decide, state, memory), Notes())
        )
        seen.append(Consultation(state, memory, outcome, notes))
        if isinstance(outcome, Raised):
            raise outcome.error
        return outcome

    everybody: list[Callback[Any]] = [attrs.evolve(callback, decide=cast("Any", asked)), *_fate(training)]
    if onlookers:
        before, after = (_onlooker(name, callback.at) for name in ONLOOKERS)
        everybody = [before, *everybody[::-1], after]
    work = World(training, hyper, without)
    state = start(work, epochs=training.epochs, seed=training.seed)
    if interrupted:
        work.interrupt_after = training.interrupt_after
    for _ in range(_CALLS):
        try:
            (state,) = deque(iterate(state, everybody), maxlen=1)
        except FsmTrainError as error:
            # What the callback raised, or the machine refuses, stands in the last consultation, where the
            # checks find it.
            if error.__cause__ is not None and not (seen and seen[-1].raised is error.__cause__):
                raise
        if state.phase is not Phase.SUSPENDED:
            break
        if interrupted:
            decide = hidden.fresh(callback.decide)
            memory = {name: _restored(kept) for name, kept in state.memory.items()}
            state = attrs.evolve(state, memory=FrozenMap(memory))
    return seen


class World(Scripted):
    """A script that depends on the counters alone, so that going on later, or being watched, changes nothing."""

    def __init__(self, training: Training, hyper: Mapping[str, Hyper], without: str | None = None) -> None:
        metrics = {name: values for name, values in training.metrics.items() if name != without}
        super().__init__(
            batches=training.batches,
            batch_size=_by_batch(training.batch_sizes),
            loss=_by_batch(training.losses),
            hyper=hyper,
            **{name: _by_batch(values) for name, values in training.facts.items() if name != "elapsed"},
            **{name: _by_epoch(values) for name, values in metrics.items()},
            elapsed=_passing(training.facts.get("elapsed", (1.0,))),
        )
        self.interrupt_after = 0

    def _count(self) -> None:
        if self.interrupt_after:
            self.interrupt_after -= 1
            if not self.interrupt_after:
                self.interrupt = "a signal"

    def fetch(self, state: State | None = None) -> int | None:
        self._count()
        return super().fetch(state)

    def fetch_valid(self, state: State | None = None) -> int | None:
        self._count()
        return super().fetch_valid(state)

    def measure_valid(self, state: State) -> Mapping[str, float]:
        self._count()
        return super().measure_valid(state)

    def measure(self, state: State) -> Mapping[str, float]:
        self._count()
        return super().measure(state)


def _by_batch(values: Sequence[float]) -> Callable[[State], float]:
    return lambda state: values[(state.iteration + state.valid_batch) % len(values)]


def _by_epoch(values: Sequence[float]) -> Callable[[State], float]:
    return lambda state: values[state.epoch % len(values)]


def _passing(paces: Sequence[float]) -> Callable[[State], float]:
    """Seconds that pass with each batch, at this pace."""
    return lambda state: paces[0] * state.iteration


def _fate(training: Training) -> list[Callback[Any]]:
    """Somebody who raises flags, for reasons of their own."""
    if not training.fate:
        return []

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_BEGIN, name=FATE)
    def fate(state: State) -> Transition | None:
        flags = Flag.NONE
        for iteration, flag in training.fate:
            # SKIP_BATCH and the like fall before the next batch; the others are raised for the epoch.
            if iteration == state.iteration and (flag in _EPOCH_FLAGS) == (state.phase is Phase.EPOCH_BEGIN):
                flags |= flag
        return Transition(flags=flags) if flags else None

    return [fate]


_EPOCH_FLAGS = (Flag.SKIP_VALID, Flag.STOP_EPOCH)


def _onlooker(name: str, at: Sequence[Phase]) -> Callback[int]:
    """Somebody who looks at everything that can be known there, remembers how often, and wants nothing."""
    needs = {fact for fact, phases in KNOWN_AT.items() if phases.intersection(at)}

    @on(*at, name=name, memory=0, needs=needs)
    def onlooker(state: State, times: int) -> Transition:
        return Transition(memory=times + 1)

    return onlooker


def _restored(memory: object) -> object:
    with contextlib.suppress(Exception):  # what cannot be saved is found by another check
        return through_json(memory)
    return memory


def written(state: State) -> str:
    """The state as one would write it in a test.

    >>> from fsm_train.testing import at
    >>> written(at(Phase.EPOCH_END, epoch=1, valid_loss=0.5))
    'at(Phase.EPOCH_END, epoch=1, valid_loss=0.5)'
    """
    given = {"epoch": state.epoch, "batch": state.batch, "iteration": state.iteration, "step": state.step}
    given |= {"pending": state.pending, "valid_batch": state.valid_batch}
    parts = [f"{name}={value!r}" for name, value in given.items() if value]
    parts += [f"flags={' | '.join(f'Flag.{flag.name}' for flag in state.flags)}"] * bool(state.flags)
    parts += [f"{name}={_number(value)}" for name, value in state.metrics.items() if name.startswith(_PER_EPOCH)]
    parts += [
        f"{name}={_number(value)}"
        for name, value in state.facts.items()
        if name != "batch_size" or value not in _BATCH_SIZES
    ]
    parts += [f"{name}={value!r}" for name, value in state.hyper.items() if name != "lr" or value != _LR]
    return f"at({', '.join([f'Phase.{state.phase.name}', *parts])})"


_LR, _BATCH_SIZES = 0.1, (32, 0)  # what `at` gives a state if nothing is said; before the first batch it is 0


def _number(value: float) -> str:
    return repr(value) if value - value == 0 else f"float('{value!r}')"
