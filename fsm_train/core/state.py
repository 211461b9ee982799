"""The state of a training: one immutable record, and the counters that change from batch to batch.

Rule of this file: records and their checks. How one state follows from another is in `table.py`.

`Counters` are the part of the state that the guards of the table read and the operations change:
the only record that is written to, since it changes several times per batch and a `State` is made
of it only where somebody looks. Each belongs to the one who made it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from .phase import Flag, Phase, Place
from .values import EMPTY, NO_FACTS, Facts, Metrics, as_facts, as_metrics, frozen_map

if TYPE_CHECKING:
    from .workload import Workload

Hyper = float | tuple[float, ...]
"""The value of a hyper-parameter: one for all parameter groups, or a tuple with one per group."""

NEVER = -1


def _positive_or_none(plan: Plan, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} is a whole number, not {value!r}")
    if value < 0:
        raise ValueError(f"{attribute.name}={value}: a training cannot have a negative number of them")


def _seed(plan: Plan, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(
            f"seed={value!r}: a seed is a whole number from 0, or None to leave the generators as they are"
        )


@attrs.frozen
class Plan:
    """How long to train: whichever of `epochs` and `max_steps` is reached first ends the training.

    >>> Plan(epochs=10, max_steps=5_000)
    Plan(epochs=10, max_steps=5000, seed=None)

    Attributes:
        epochs: passes over the training data.
        max_steps: optimizer steps that were applied.
        seed: seeds all generators when the training begins; None leaves them as they are.
    """

    epochs: int | None = attrs.field(default=None, validator=_positive_or_none)
    max_steps: int | None = attrs.field(default=None, validator=_positive_or_none)
    seed: int | None = attrs.field(default=None, validator=_seed)

    def __attrs_post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("a plan without an end: give epochs, max_steps, or both")


@attrs.define
class Counters:
    """What guards read and operations change. The fields mean what they mean in `State`."""

    plan: Plan
    has_valid: bool = False
    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    step: int = 0
    samples: int = 0
    pending: int = 0
    valid_batch: int = 0
    batches_over: bool = False
    validated_at: int = NEVER
    resume_at: Place | None = None
    error: str = ""
    fetched: int = 0
    exhausted: bool = False


@attrs.frozen(slots=False)
class State:
    """A training at one instant, seen from one phase.

    It has no slots, unlike the other records: copying a `__dict__` makes a state four times as fast
    as setting two dozen slots, and one is made at every phase that is watched.

    >>> from fsm_train.testing import simulate
    >>> final = simulate([], epochs=2, batches=3, valid_loss=[1.0, 0.5])
    >>> final.epoch, final.step, final.metrics["valid_loss"]
    (2, 6, 0.5)
    >>> [metrics["valid_loss"] for metrics in final.history]
    [1.0, 0.5]

    Attributes:
        phase: where the machine stands.
        plan: how long to train.
        epoch: finished epochs; while one is under way, its index from 0.
        batch: finished training batches of this epoch; while one is under way, its index from 0.
            An epoch counts as finished at EPOCH_END, a batch at BATCH_END.
        iteration: finished training batches of the whole training.
        step: optimizer steps that were applied.
        samples: training samples seen.
        pending: backward passes whose gradients wait for a step.
        flags: what was asked of the machine and has not fallen yet.
        facts: what was measured at this phase.
        metrics: of the last epoch or validation: train_loss, valid_loss, valid_accuracy, …
        history: the metrics of each finished epoch.
        hyper: the hyper-parameters; a tuple is one value per parameter group.
        memory: each callback's own, by its name.
        reason: why it stops or was suspended, with the callback's name.
        workload: the bridge to the real things; only on states that go into a run or come out.
        valid_batch: finished batches of the validation under way.
        has_valid: whether there is validation data.
        batches_over: whether this epoch has had its last training batch. A step that is taken
            while this is true is the one for a leftover window ("draining").
        validated_at: the `iteration` after which these weights were validated, or -1.
        resume_at: where a suspended training goes on.
        error: what went wrong, in a failed training.
        fetched: samples of the batch that was fetched last.
        exhausted: whether the last fetch found no further batch.
        elapsed: seconds of training in the calls of `run` that have ended.
        notes: what whoever has the last state should know and what is no part of the training: that
            the log of it is incomplete, that a sink was switched off. Not compared.
    """

    phase: Phase
    plan: Plan
    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    step: int = 0
    samples: int = 0
    pending: int = 0
    flags: Flag = Flag.NONE
    facts: Facts = attrs.field(default=NO_FACTS, converter=as_facts)
    metrics: Mapping[str, float] = attrs.field(default=Metrics(), converter=as_metrics)
    history: tuple[Mapping[str, float], ...] = ()
    hyper: Mapping[str, Hyper] = attrs.field(default=EMPTY, converter=frozen_map)
    memory: Mapping[str, object] = attrs.field(default=EMPTY, converter=frozen_map)
    reason: str = ""
    workload: Workload | None = attrs.field(default=None, eq=False, repr=False)
    valid_batch: int = 0
    has_valid: bool = False
    batches_over: bool = False
    validated_at: int = NEVER
    resume_at: Place | None = None
    error: str = ""
    fetched: int = 0
    exhausted: bool = False
    elapsed: float = attrs.field(default=0.0, eq=False)
    notes: tuple[str, ...] = attrs.field(default=(), eq=False)

    def __attrs_post_init__(self) -> None:
        if (
            self.epoch < 0
            or self.batch < 0
            or self.iteration < 0
            or self.step < 0
            or self.samples < 0
            or self.pending < 0
        ):
            name = next(name for name in _COUNTED if getattr(self, name) < 0)
            raise ValueError(f"{name}={getattr(self, name)}: a state counts from 0")

    @property
    def draining(self) -> bool:
        """Whether the batches are over and a step is being taken for the leftover window."""
        return self.batches_over and self.phase in (Phase.STEP_BEGIN, Phase.STEP_END)

    def random(self, name: str) -> random.Random:
        """A generator of random numbers that depends on the plan's seed, the counters and `name` alone.

        The same state gives the same numbers, in a replay and in another process too. A plan
        without a seed draws as one with seed 0. Outside of a validation, how long the last one was
        does not count, so that whether one validates does not change what one trains.
        """
        seed = self.plan.seed or 0
        validated = self.valid_batch if self.phase in (Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END) else 0
        return random.Random(f"{seed}/{self.epoch}/{self.batch}/{self.iteration}/{self.step}/{validated}/{name}")


_COUNTED = ("epoch", "batch", "iteration", "step", "samples", "pending")


def counters_of(state: State) -> Counters:
    return Counters(
        state.plan,
        state.has_valid,
        state.epoch,
        state.batch,
        state.iteration,
        state.step,
        state.samples,
        state.pending,
        state.valid_batch,
        state.batches_over,
        state.validated_at,
        state.resume_at,
        state.error,
        state.fetched,
        state.exhausted,
    )


def state_at(phase: Phase, counters: Counters, flags: Flag, facts: Facts, last: State) -> State:
    """The state at `phase`: its counters, flags and facts, and for the rest what `last` says.

    This is the most expensive thing that the machine does, once for each phase that is watched. It
    takes the values of a state and counters that were checked already, so it goes around the checks
    and conversions of the constructor.
    """
    values = last.__dict__.copy()
    values["phase"] = phase
    values["plan"] = counters.plan
    values["epoch"] = counters.epoch
    values["batch"] = counters.batch
    values["iteration"] = counters.iteration
    values["step"] = counters.step
    values["samples"] = counters.samples
    values["pending"] = counters.pending
    values["flags"] = flags
    values["facts"] = facts
    values["workload"] = None
    values["valid_batch"] = counters.valid_batch
    values["has_valid"] = counters.has_valid
    values["batches_over"] = counters.batches_over
    values["validated_at"] = counters.validated_at
    values["resume_at"] = counters.resume_at
    values["error"] = counters.error
    values["fetched"] = counters.fetched
    values["exhausted"] = counters.exhausted
    return _made(values)


def replaced(state: State, changes: Mapping[str, object]) -> State:
    """As attrs.evolve, several times as fast, for values that are checked already and frozen."""
    values = state.__dict__.copy()
    values.update(changes)
    return _made(values)


def _made(values: dict[str, object]) -> State:
    state = _new(State)
    object.__setattr__(state, "__dict__", values)
    return state


_new = object.__new__


def extend(state: State, *, epochs: int | None = None, max_steps: int | None = None) -> State:
    """The state with a larger plan: `epochs` more of them, `max_steps` more.

    Counters, memories and history stay as they are, so that `run(extend(final, epochs=5), …)`
    goes on with a finished training. A limit that is not named stays where it is, but a limit
    that was reached already would end the extended training at once, which is an error.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(), epochs=2))
    >>> run(extend(final, epochs=3)).epoch
    5

    Raises:
        ValueError: nothing is added, or the plan would still be fulfilled.
    """
    if state.phase in (Phase.SUSPENDED, Phase.READY, Phase.DONE):
        plan = attrs.evolve(
            state.plan,
            epochs=_sum(state.plan.epochs, epochs, state.epoch),
            max_steps=_sum(state.plan.max_steps, max_steps, state.step),
        )
        if not epochs and not max_steps:
            raise ValueError("extend by what? give epochs=, max_steps=, or both")
        if plan.epochs is not None and state.epoch >= plan.epochs:
            raise ValueError(f"all {plan.epochs} epochs of the plan are done: extend with epochs= as well")
        if plan.max_steps is not None and state.step >= plan.max_steps:
            raise ValueError(f"all {plan.max_steps} steps of the plan are done: extend with max_steps= as well")
        return attrs.evolve(state, plan=plan)
    raise ValueError(f"only a training between two runs can be extended, not one at {state.phase.value}")


def _sum(limit: int | None, more: int | None, so_far: int) -> int | None:
    if more is None:
        return limit
    return (so_far if limit is None else limit) + more


def failed(state: State, error: BaseException) -> State:
    """The state at TEARDOWN after something raised. Whatever was asked for is void."""
    text = f"{type(error).__name__}: {error}"
    return attrs.evolve(state, phase=Phase.TEARDOWN, error=text, reason=text, flags=Flag.NONE, facts=NO_FACTS)


def ready(state: State) -> State:
    """The state as a new call of `run` takes it up.

    SUSPEND is over with the call that it ended, and STOP_TRAINING with the training that it ended.

    Raises:
        ValueError: the state was taken in the middle of a run.
    """
    if state.phase not in (Phase.READY, Phase.DONE, Phase.SUSPENDED):
        raise ValueError(
            f"this state was taken at {state.phase.value}, in the middle of a run: a run begins with the state of "
            "start(), of restore(), or one that a run returned"
        )
    flags = state.flags & ~Flag.SUSPEND if state.resume_at else Flag.NONE
    reason = state.reason if Flag.STOP_TRAINING in flags else ""
    return attrs.evolve(state, phase=Phase.READY, flags=flags, reason=reason, facts=NO_FACTS, workload=None)


def check_hyper(name: str, value: object) -> Hyper:
    """`value` as a hyper-parameter: a finite float, or a tuple of them.

    Raises:
        TypeError: it is neither a number nor a tuple of numbers.
        ValueError: it is not finite.
    """
    if isinstance(value, tuple):
        if not value:
            raise ValueError(f"{name} is an empty tuple: give one value per parameter group")
        return tuple(_finite(name, part) for part in value)
    return _finite(name, value)


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name}={value!r}: a hyper-parameter is a number, or a tuple with one number per parameter group"
        )
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: a hyper-parameter is finite")
    return float(value) + 0.0  # there is one zero, so that equal values are the same
