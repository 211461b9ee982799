"""Trying callbacks out, as arithmetic: on made-up states, and on whole trainings without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from ..core.callback import Callback, ask, is_due
from ..core.facts import KNOWN_AT
from ..core.phase import Phase
from ..core.state import Hyper, Plan, State, counters_of
from ..core.transition import UNCHANGED, Transition
from ..core.values import FrozenMap
from ..interpreter import run, start
from ..sinks.base import Sink
from ..workloads.scripted import Script, Scripted


def simulate(
    callbacks: Iterable[Callback[Any]],
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    batches: Script = 1,
    hyper: Mapping[str, Hyper] | None = None,
    seed: int | None = None,
    sinks: Iterable[Sink] = (),
    **values: Script,
) -> State:
    """Run the callbacks on a training without a model, and return the last state.

    >>> from fsm_train.callbacks import early_stopping
    >>> simulate([early_stopping(patience=1)], valid_loss=[1.0, 1.1]).epoch
    2

    Args:
        callbacks: as for `run`.
        epochs: of the plan. With neither epochs nor max_steps, as many as the shortest sequence
            among the train_… and valid_… values has items, or one.
        max_steps: of the plan.
        batches: training batches per epoch.
        hyper: the hyper-parameters; {"lr": 0.1} if nothing is said.
        seed: of the plan; what `state.random` draws depends on it.
        sinks: as for `run`.
        **values: what is measured (loss, valid_loss, grad_norm, …; see `Scripted`): values,
            sequences, or functions of the state.
    """
    if epochs is None and max_steps is None:
        per_epoch = [len(v) for name, v in values.items() if _is_metric(name) and isinstance(v, Sequence)]
        epochs = min(per_epoch, default=1)
    work = Scripted(batches=batches, hyper=hyper, **values)
    return run(start(work, epochs=epochs, max_steps=max_steps, seed=seed), callbacks, sinks=sinks)


def at(phase: Phase, **fields: Any) -> State:
    """A state at `phase`, for a test.

    Fields of a `State` are given by their names. Any other name is a metric if it begins with
    train_ or valid_, a hyper-parameter if it is lr, momentum or weight_decay, and else a fact.

    >>> at(Phase.LOSS_END, iteration=7, loss=0.5).facts["loss"]
    0.5
    >>> at(Phase.EPOCH_END, valid_loss=1.25).metrics
    {'valid_loss': 1.25}
    """
    known = {field.name for field in attrs.fields(State)}
    others = {name: fields.pop(name) for name in list(fields) if name not in known}
    metrics = {name: value for name, value in others.items() if _is_metric(name)}
    hyper = {name: value for name, value in others.items() if name in _HYPER}
    facts = {name: value for name, value in others.items() if name not in metrics and name not in hyper}
    defaults: dict[str, Any] = {"plan": Plan(epochs=10), "has_valid": True}
    state = State(**{**defaults, **fields, "phase": phase})
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
    """The callback's answers to one state after the other, each with the memory that the last one left.

    Where it has nothing to say, or its `every` lets it not be consulted, the answer is `Transition()`.

    >>> from fsm_train.callbacks import early_stopping
    >>> curve = [at(Phase.EPOCH_END, valid_loss=loss) for loss in (2.0, 1.0, 1.5)]
    >>> [answer.flags.name for answer in drive(early_stopping(patience=1), curve)]
    ['NONE', 'NONE', 'STOP_TRAINING']

    Raises:
        ValueError: a state is at a phase where the callback is not consulted.
        CallbackError: the callback raised, or answered something that is no answer.
    """
    memory = callback.memory
    answers = []
    for state in states:
        if state.phase not in callback.at:
            phases = ", ".join(phase.value for phase in callback.at)
            raise ValueError(f"{callback.name!r} is not consulted at {state.phase.value}, only at {phases}")
        answer = Transition()
        if is_due(callback, state.phase, counters_of(state)):
            answer = ask(callback, attrs.evolve(state, memory=FrozenMap({**state.memory, callback.name: memory})))
        if answer.memory is not UNCHANGED:
            memory = answer.memory
        answers.append(answer)
    return answers
