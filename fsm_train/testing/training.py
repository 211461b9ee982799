"""A callback in a simulated training.

A `Training` describes what happens; Hypothesis draws and shrinks it. `consultations_of` runs the callback in
it and returns each consultation, observed or not.
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
from . import hidden_state
from .consultation import Consultation, Failure, Observations, ask, ask_and_observe
from .json_memory import through_json

WATCHERS = ("watcher before", "watcher after")
_MAX_CALLS = 4  # of run: a callback may suspend the training itself, again and again
_PER_EPOCH = ("train_", "valid_")


@attrs.frozen
class Training:
    """What happens in a simulated training. A sequence that is too short starts again.

    Attributes:
        epochs: number of epochs of the plan.
        batches: training batches per epoch.
        batch_sizes: samples in each batch.
        losses: loss of each batch.
        facts: other facts by name, a value per batch; of `elapsed` the first is the seconds per batch.
        metrics: metrics by name, a value per epoch.
        forced_flags: flags that another callback raises, each with the iteration in which it does.
        interrupt_after: number of operations on the data after which a signal arrives; 0 for never.
        seed: seed of the plan.
    """

    epochs: int = 1
    batches: int = 1
    batch_sizes: tuple[int, ...] = (32,)
    losses: tuple[float, ...] = (0.0,)
    facts: Mapping[str, tuple[float, ...]] = attrs.Factory(dict)
    metrics: Mapping[str, tuple[float, ...]] = attrs.Factory(dict)
    forced_flags: tuple[tuple[int, Flag], ...] = ()
    interrupt_after: int = 0
    seed: int = 0


NO_TURNS: Mapping[str, int] = FrozenMap()


def players_for(callback: Callback[Any]) -> Mapping[str, int]:
    """The players of a simulated training: for a callback that is for one, that and others; otherwise none."""
    player = callback.params.get("player")
    return FrozenMap({"first": 1, str(player): 2, "last": 1}) if player is not None else NO_TURNS


def consultations_of(
    callback: Callback[Any],
    training: Training,
    *,
    hyper: Mapping[str, Hyper],
    without: str | None = None,
    observe: bool = False,
    watchers: bool = False,
    interrupt: bool = False,
) -> list[Consultation]:
    """Run the callback in the training, and return its consultations in order.

    Args:
        callback: the callback; each run gets a fresh copy of its closure.
        training: what happens.
        hyper: the hyper-parameters of the optimizer.
        without: a metric that is never measured.
        observe: whether to note what the callback does beside answering.
        watchers: whether two other callbacks, before and after it in the list, read everything and change nothing.
        interrupt: whether the training is suspended after `training.interrupt_after` operations, and resumed
            with memories that went through JSON.
    """
    seen: list[Consultation] = []
    decide = hidden_state.fresh(callback.decide)

    def observed(state: State, memory: object) -> object:
        observations = Observations()
        if observe:
            response, observations = ask_and_observe(callback, decide, state, memory)
        else:
            response = ask(decide, state, memory)
        seen.append(Consultation(state, memory, response, observations))
        if isinstance(response, Failure):
            raise response.error
        return response

    # Without its monitors: a run would refuse it where a metric is left out, and here it is to be asked.
    asked = attrs.evolve(callback, decide=cast("Any", observed), monitors=(), reads=None)
    callbacks: list[Callback[Any]] = [asked, *_forcing(training)]
    if watchers:
        before, after = (_watcher(name, callback.at) for name in WATCHERS)
        callbacks = [before, *callbacks[::-1], after]
    work = ScriptedTraining(training, hyper, without, players_for(callback))
    state = start(work, epochs=training.epochs, seed=training.seed)
    if interrupt:
        work.interrupt_after = training.interrupt_after
    for _ in range(_MAX_CALLS):
        try:
            (state,) = deque(iterate(state, callbacks), maxlen=1)
        except FsmTrainError as error:
            # A consultation holds what the callback raised, or what the machine refused: the checks judge it.
            if error.__cause__ is not None and all(c.error is not error.__cause__ for c in seen):
                raise
        if state.phase is not Phase.SUSPENDED:
            break
        if interrupt:
            decide = hidden_state.fresh(callback.decide)
            memory = {name: _restored(value) for name, value in state.memory.items()}
            state = attrs.evolve(state, memory=FrozenMap(memory))
    return seen


class ScriptedTraining(Scripted):
    """A workload whose measurements depend on the counters alone, so that suspending or watching it changes nothing."""

    def __init__(
        self,
        training: Training,
        hyper: Mapping[str, Hyper],
        without: str | None = None,
        players: Mapping[str, int] = NO_TURNS,
    ) -> None:
        metrics = {name: values for name, values in training.metrics.items() if name != without}
        facts: dict[str, Any] = {
            name: _by_batch(values) for name, values in training.facts.items() if name != "elapsed"
        }
        measured: dict[str, Any] = {name: _by_epoch(values) for name, values in metrics.items()}
        super().__init__(
            batches=training.batches,
            batch_size=_by_batch(training.batch_sizes),
            loss=_by_batch(training.losses),
            hyper={f"{player}.{name}": value for player in players for name, value in hyper.items()} or hyper,
            players=players,
            **facts,
            **measured,
            elapsed=_elapsed(training.facts.get("elapsed", (1.0,))),
        )
        self.interrupt_after = 0

    def _count(self) -> None:
        if self.interrupt_after:
            self.interrupt_after -= 1
            if not self.interrupt_after:
                self.interrupt = "a signal"

    def fetch(self, state: State | None = None) -> float | None:
        self._count()
        return super().fetch(state)

    def fetch_valid(self, state: State | None = None) -> float | None:
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


def _elapsed(paces: Sequence[float]) -> Callable[[State], float]:
    """Seconds of training so far: the first pace is the seconds per batch."""
    return lambda state: paces[0] * state.iteration


def _forcing(training: Training) -> list[Callback[Any]]:
    """A callback that raises the forced flags, if there are any."""
    if not training.forced_flags:
        return []

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_BEGIN, name="forced flags")
    def forced_flags(state: State) -> Transition | None:
        flags = Flag.NONE
        for iteration, flag in training.forced_flags:
            # SKIP_BATCH and others fall before the next batch; the flags of an epoch are raised at its begin.
            if iteration == state.iteration and (flag in _EPOCH_FLAGS) == (state.phase is Phase.EPOCH_BEGIN):
                flags |= flag
        return Transition(flags=flags) if flags else None

    return [forced_flags]


_EPOCH_FLAGS = (Flag.SKIP_VALID, Flag.STOP_EPOCH)


def _watcher(name: str, at: Sequence[Phase]) -> Callback[int]:
    """A callback that reads each fact known at its phases, counts its consultations, and changes nothing."""
    needs = {fact for fact, phases in KNOWN_AT.items() if phases.intersection(at)}

    @on(*at, name=name, memory=0, needs=needs)
    def watcher(state: State, times: int) -> Transition:
        return Transition(memory=times + 1)

    return watcher


def _restored(memory: object) -> object:
    with contextlib.suppress(Exception):  # another check finds what cannot be saved
        return through_json(memory)
    return memory


def state_as_code(state: State) -> str:
    """The call of `at` that makes this state.

    >>> from fsm_train.testing import at
    >>> state_as_code(at(Phase.EPOCH_END, epoch=1, valid_loss=0.5))
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


_LR, _BATCH_SIZES = 0.1, (32, 0)  # the defaults of `at`; before the first batch the size is 0


def _number(value: float) -> str:
    return repr(value) if value - value == 0 else f"float('{value!r}')"
