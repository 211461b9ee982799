"""Callbacks tried on made-up states, and in whole trainings without a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NoReturn, cast

import attrs

from ..core.arguments import takes_by_name
from ..core.callback import Callback, check_names, is_due
from ..core.checks import check_not_misspelt
from ..core.facts import KNOWN_AT
from ..core.merge import consult
from ..core.phase import CONSULTED, Operation, Phase
from ..core.state import Hyper, Plan, State
from ..core.transition import UNCHANGED, Transition
from ..core.values import FrozenMap
from ..core.workload import Workload
from ..interpreter import iterate, start
from ..sinks.base import Sink
from ..worlds.scripted import SCRIPTED_NAMES, Script, Scripted
from .ranks import Moment, PerRank, of_rank, train_ranks
from .trace import Trace

When = Phase | Callable[[State], bool]
"""A phase, the first time that it is reached; or a predicate, which is given the state at each phase."""


class SimulatedError(Exception):
    """What `simulate(fail_at=…)` lets go wrong.

    >>> try:
    ...     simulate([], fail_at=Phase.EPOCH_END)
    ... except SimulatedError as error:
    ...     print(error)
    as planned, at epoch_end
    """


@takes_by_name
def simulate(
    callbacks: Iterable[Callback[Any]] | PerRank[Iterable[Callback[Any]]],
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    batches: Script | PerRank[Script] = 1,
    hyper: Mapping[str, Hyper] | PerRank[Mapping[str, Hyper]] | None = None,
    players: Mapping[str, int] | None = None,
    seed: int | None = None,
    sinks: Iterable[Sink] | PerRank[Iterable[Sink]] = (),
    until: When | None = None,
    interrupt_at: When | Moment | PerRank[When | Moment | None] | None = None,
    fail_at: When | Operation | PerRank[When | Operation | None] | None = None,
    trace: Trace | PerRank[Trace] | None = None,
    ranks: int | None = None,
    **values: Script | PerRank[Script],
) -> State:
    """Run the callbacks on a training without a model, and return the last state.

    >>> from fsm_train.callbacks import early_stopping
    >>> simulate([early_stopping(patience=1)], valid_loss=[1.0, 1.1]).epoch
    2
    >>> simulate([], batches=9, until=lambda state: state.step == 4).phase
    <Phase.STEP_END: 'step_end'>
    >>> suspended = simulate([], batches=9, interrupt_at=lambda state: state.iteration == 4)
    >>> from fsm_train import run
    >>> suspended.batch, suspended.reason
    (4, 'interrupted by a signal')
    >>> run(suspended).batch  # goes on where it was
    9
    >>> final = simulate([], batches=10, players={"D": 1, "G": 5})
    >>> final.step, final.steps_of("D"), final.steps_of("G")
    (12, 10, 2)

    On several ranks, of which the second is sent a signal and has fewer batches:

    >>> simulate([], ranks=2, epochs=2, batches=PerRank(5, 3)).step
    6
    >>> simulate([], ranks=2, batches=9, interrupt_at=PerRank(None, Phase.STEP_END)).batch
    2

    Args:
        callbacks: as for `run`.
        epochs: number of epochs of the plan. With neither epochs nor max_steps, the length of the shortest
            sequence among the train_… and valid_… values, or 1.
        max_steps: number of steps of the plan.
        batches: training batches per epoch.
        hyper: the hyper-parameters; by default {"lr": 0.1}, or with players {"D.lr": 0.1, …}.
        players: by name, those that take turns, and at each so-many-th batch they play: {"D": 1, "G": 5}.
        seed: seed of the plan, which `state.random` depends on.
        sinks: as for `run`.
        until: return the state at this phase, after its answers, instead of the last one.
        interrupt_at: interrupt the training there, as SIGTERM does, and return the suspended state.
        fail_at: raise `SimulatedError` there: at a phase, or the first time that an operation is carried out.
        trace: an empty `Trace`, which is filled with what happens.
        ranks: how many ranks train together. Each setting may then be a `PerRank`, and `interrupt_at` a `Moment`;
            the state that is returned is the one with which all ranks end.
        **values: what is measured (loss, valid_loss, grad_norm, …; see `Scripted`): values,
            sequences, or functions of the state.

    Raises:
        TypeError: a name among the values is likely a misspelt setting.
        SimulatedError: `fail_at` asks for it; raised after TEARDOWN.
        AssertionError: until, interrupt_at or fail_at never happened, or max_steps is never reached:
            with no number of epochs, 1,000 epochs in a row made no step. With ranks: they end differently
            (`RanksDifferError`), or wait for each other (`DeadlockError`).
        DisagreementError, WorkloadError: with ranks, as for `Agreed`, which refuses players.
    """
    check_not_misspelt("simulate", values, _SETTINGS)
    settings: dict[str, Any] = {
        "epochs": epochs,
        "max_steps": max_steps,
        "seed": seed,
        "batches": batches,
        "hyper": hyper,
        "players": players,
        "sinks": sinks,
        "until": until,
        "interrupt_at": interrupt_at,
        "fail_at": fail_at,
        "trace": trace,
        "callbacks": callbacks,
        **values,
    }
    if ranks is None:
        return _simulate(_alone, **settings)
    if not isinstance(callbacks, PerRank):
        settings["callbacks"] = check_names(callbacks)  # an iterator would be used up by the first rank
    return train_ranks(ranks, lambda rank, join: _simulate(join, **of_rank(rank, ranks, settings))).state


def _simulate(
    join: Callable[..., Workload],
    *,
    callbacks: Iterable[Callback[Any]],
    epochs: int | None,
    max_steps: int | None,
    seed: int | None,
    sinks: Iterable[Sink],
    until: When | None,
    interrupt_at: When | Moment | None,
    fail_at: When | Operation | None,
    trace: Trace | None,
    **values: Any,
) -> State:
    """One training; its workload goes through `join`."""
    if epochs is None and max_steps is None:
        per_epoch = [len(v) for name, v in values.items() if _is_metric(name) and isinstance(v, Sequence)]
        epochs = min(per_epoch, default=1)
    work: Workload = Scripted(**values)
    if isinstance(fail_at, Operation):
        setattr(work, fail_at.value, _failing(fail_at))
    moment: Moment | None = None
    if isinstance(interrupt_at, Moment):
        moment, interrupt_at = interrupt_at, None
    work = joined = join(work, interrupt_at=moment)
    if trace is not None:
        work, sinks = trace.watching(work), (*sinks, trace)
    state = start(work, epochs=epochs, max_steps=max_steps, seed=seed)
    plan = {"until": until, "interrupt_at": interrupt_at, "fail_at": fail_at}
    last = _train_with_plan(
        state, callbacks, sinks, {name: when for name, when in plan.items() if when is not None}, trace
    )
    if moment is not None and not cast("Any", joined).sent:
        raise AssertionError(f"interrupt_at={moment!r} never came: the training ended after {last.iteration} batches")
    return last


def _alone(work: Workload, *, interrupt_at: Moment | None) -> Workload:
    """The workload as it is.

    Raises:
        TypeError: a signal is to come at a moment of a rank.
    """
    if interrupt_at is not None:
        raise TypeError(f"interrupt_at={interrupt_at!r}: a Moment is for trainings on ranks; give ranks= too")
    return work


_SETTINGS = SCRIPTED_NAMES | {
    *("callbacks", "epochs", "max_steps", "seed", "sinks", "until", "interrupt_at", "fail_at", "trace", "ranks")
}

_STEPLESS_EPOCHS = 1_000
"""After this many epochs in a row without a step, a plan without epochs counts as endless."""


def _train_with_plan(
    state: State,
    callbacks: Iterable[Callback[Any]],
    sinks: Iterable[Sink],
    plan: dict[str, When | Operation],
    trace: Trace | None,
) -> State:
    """Train phase by phase, and stop, interrupt or fail at the first state that the plan names.

    `run` would handle signals, which are meant for the process that runs the tests.
    """
    phases = CONSULTED if plan else (Phase.EPOCH_END,) if state.plan.epochs is None else ()
    states = cast("Generator[State]", iterate(state, callbacks, sinks=sinks, at=phases))
    work = state.workload
    assert work is not None, "start() gave it one"
    last_step = (state.epoch, state.step)
    with contextlib.closing(states):
        for state in states:
            if state.step > last_step[1]:
                last_step = (state.epoch, state.step)
            elif state.plan.epochs is None and state.epoch - last_step[0] >= _STEPLESS_EPOCHS:
                raise AssertionError(
                    f"max_steps={state.plan.max_steps} is never reached: {_STEPLESS_EPOCHS:,} epochs in a row "
                    f"made no step; give epochs= too, if steps may all be skipped"
                )
            due = [name for name, when in plan.items() if _is_time(when, state)]
            for name in due:
                del plan[name]
            if "fail_at" in due:
                states.throw(SimulatedError(f"as planned, at {state.phase.value}"))
            if "interrupt_at" in due:
                work.interrupt = "a signal"
            if "until" in due:
                if trace is not None:
                    trace.on = False  # the TEARDOWN of a loop that is left early is no part of the training
                return state
    for name, when in plan.items():
        raise AssertionError(
            f"{name}={when!r} never came true: the training ended at {state.phase.value} of epoch {state.epoch}, "
            f"after {state.iteration} batches and {state.step} steps"
        )
    return state


def _is_time(when: When | Operation, state: State) -> bool:
    if isinstance(when, (Phase, Operation)):
        return state.phase is when
    return when(state)


def _failing(operation: Operation) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise SimulatedError(f"as planned, by {operation.value}")

    return fail


def at(phase: Phase, **fields: Any) -> State:
    """A state at `phase`, for a test.

    A name that is no field of `State` is a metric if it begins with train_ or valid_, a hyper-parameter if
    it is lr, momentum or weight_decay, and otherwise a fact. With `players`, `player` and `turn` say whose turn it is.

    >>> at(Phase.LOSS_END, iteration=7, loss=0.5).facts["loss"]
    0.5
    >>> at(Phase.EPOCH_END, valid_loss=1.25).metrics
    {'valid_loss': 1.25}
    >>> at(Phase.STEP_BEGIN, players={"D": 1, "G": 5}, player="G", turn=1).player
    'G'

    Raises:
        TypeError: a name is likely a misspelt one.
        LookupError: the player is none of the players.
    """
    turn = {name: fields.pop(name) for name in ("player", "turn") if name in fields}
    known = frozenset(field.name for field in attrs.fields(State))
    check_not_misspelt("at", fields, known | KNOWN_AT.keys() | _HYPER | {"player", "turn", "train_loss", "valid_loss"})
    others = {name: fields.pop(name) for name in list(fields) if name not in known}
    metrics = {name: value for name, value in others.items() if _is_metric(name)}
    hyper = {name: value for name, value in others.items() if name in _HYPER}
    facts = {name: value for name, value in others.items() if name not in metrics and name not in hyper}
    defaults: dict[str, Any] = {"plan": Plan(epochs=10), "has_valid": True}
    state = State(**{**defaults, **fields, "phase": phase})
    if "player" in turn:
        state.players.steps_of(turn["player"])
    if turn:
        state = attrs.evolve(state, players=attrs.evolve(state.players, **turn))
    return attrs.evolve(
        state,
        metrics=FrozenMap({**state.metrics, **metrics}),
        facts={"batch_size": 32, **state.facts, **facts},
        hyper=FrozenMap({"lr": 0.1, **state.hyper, **hyper}),
    )


_HYPER = frozenset({"lr", "momentum", "weight_decay"})


def _is_metric(name: str) -> bool:
    return name.startswith(("train_", "valid_")) and name not in KNOWN_AT


def drive(callback: Callback[Any], states: Iterable[State]) -> list[Transition]:
    """The callback's answers to a sequence of states; each is given the memory after the one before.

    Where it answers None, or is not consulted because of `every`, the answer is `Transition()`.

    >>> from fsm_train.callbacks import early_stopping
    >>> curve = [at(Phase.VALID_END, valid_loss=loss) for loss in (2.0, 1.0, 1.5)]
    >>> [answer.flags.name for answer in drive(early_stopping(patience=1), curve)]
    ['NONE', 'NONE', 'STOP_TRAINING']

    Raises:
        ValueError: a state is at a phase where the callback is not consulted.
        CallbackError: the callback raised, or returned something that is no Transition.
    """
    (callback,) = check_names([callback])
    memory = callback.memory
    answers = []
    for state in states:
        if state.phase not in callback.at:
            phases = ", ".join(phase.value for phase in callback.at)
            raise ValueError(f"{callback.name!r} is not consulted at {state.phase.value}, only at {phases}")
        answer = Transition()
        if is_due(callback, state.phase, state):
            answered = consult(
                [callback], attrs.evolve(state, memory=FrozenMap({**state.memory, callback.name: memory}))
            )
            answer = answered[0][1] if answered else answer
        if answer.memory is not UNCHANGED:
            memory = answer.memory
        answers.append(answer)
    return answers
