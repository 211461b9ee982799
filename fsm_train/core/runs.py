"""What leads from one call of `run` to the next, and out of one that fails.

Rule of this file: pure functions from state to state. None of them is on the path of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from .arguments import check_state
from .callback import Callback, memory_classes
from .phase import Flag, Phase, Place
from .state import State
from .table import RESUMES_AT
from .values import NO_FACTS, FrozenMap, SavedMemory

SAVED_AT = (Phase.BATCH_END, Phase.VALID_END, Phase.EPOCH_END, Phase.TRAIN_END, Phase.SUSPEND)
"""The phases at which a training can be saved: those where it is whole, with no validation under way."""


def resume_place(state: State) -> Place | None:
    """Where a training that is saved in this state resumes; None for a finished one, which can be extended."""
    return state.resume_at or RESUMES_AT.get(state.phase)


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


def with_memories(state: State, callbacks: Sequence[Callback[Any]]) -> tuple[State, tuple[str, ...]]:
    """The state with the initial memory of each callback that has none in it yet, and what to warn of.

    Memories from a file are decoded here, where their callbacks are known. Resuming with other
    callbacks than were saved is allowed, and each that differs is named.
    """
    memory = {callback.name: state.memory.get(callback.name, callback.memory) for callback in callbacks}
    saved = {name for name, value in state.memory.items() if isinstance(value, SavedMemory)}
    warnings = []
    if saved:
        if new := sorted(memory.keys() - state.memory.keys()):
            warnings.append(f"not in the checkpoint, begins with its initial memory: {', '.join(new)}")
        if missing := sorted(saved - memory.keys()):
            warnings.append(f"in the checkpoint, but no callback of this run: {', '.join(missing)}")
    for callback in callbacks:
        if isinstance(value := memory[callback.name], SavedMemory):
            memory[callback.name] = value.decode_with(memory_classes(callback))
    return attrs.evolve(state, memory=FrozenMap({**state.memory, **memory})), tuple(warnings)


def interrupted(state: State, signal: str) -> State:
    """The state after a signal asked to leave, at a place where the table lets a training leave."""
    reason = "; ".join(filter(None, (state.reason, f"interrupted by {signal}")))
    return attrs.evolve(state, flags=state.flags | Flag.SUSPEND, reason=reason)


def failed(state: State, error: BaseException) -> State:
    """The state at TEARDOWN after this was raised. What was asked for is void."""
    text = f"{type(error).__name__}: {error}"
    return attrs.evolve(state, phase=Phase.TEARDOWN, error=text, reason=text, flags=Flag.NONE, facts=NO_FACTS)


def extend(state: State, *, epochs: int | None = None, max_steps: int | None = None) -> State:
    """The state with a larger plan: `epochs` more of them, `max_steps` more.

    Counters, memories and history stay as they are, so that `run(extend(final, epochs=5), …)`
    continues a finished training. A limit that is not named stays where it is, but a limit that
    was reached already would end the extended training at once, which is an error.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(), epochs=2))
    >>> run(extend(final, epochs=3)).epoch
    5

    Raises:
        ValueError: nothing is added, or the plan would still be fulfilled.
    """
    check_state(state, "extend")
    for name, more in (("epochs", epochs), ("max_steps", max_steps)):
        if more is not None and (isinstance(more, bool) or not hasattr(more, "__index__") or more < 0):
            raise ValueError(f"{name}={more!r}: extend adds this number to the plan, and it is a whole number from 1")
    if state.phase not in (Phase.SUSPENDED, Phase.READY, Phase.DONE):
        raise ValueError(f"only a training between two runs can be extended, not one at {state.phase.value}")
    if not epochs and not max_steps:
        raise ValueError("extend by what? give epochs=, max_steps=, or both")
    plan = attrs.evolve(
        state.plan,
        epochs=_larger(state.plan.epochs, epochs, state.epoch),
        max_steps=_larger(state.plan.max_steps, max_steps, state.step),
    )
    if plan.epochs is not None and state.epoch >= plan.epochs:
        raise ValueError(f"all {plan.epochs} epochs of the plan are done: extend with epochs= as well")
    if plan.max_steps is not None and state.step >= plan.max_steps:
        raise ValueError(f"all {plan.max_steps} steps of the plan are done: extend with max_steps= as well")
    return attrs.evolve(state, plan=plan)


def _larger(limit: int | None, more: int | None, so_far: int) -> int | None:
    if more is None:
        return limit
    return (so_far if limit is None else limit) + more
