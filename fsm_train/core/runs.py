"""What leads from one call of `run` to the next, and out of one that fails.

Rule of this file: pure functions of a state. None of them is on the path of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from .arguments import check_state
from .callback import Callback, memory_classes
from .checks import check_not_negative
from .failing import Failure
from .guards import continuing, resuming
from .joint_hyper import common_names, without_shared
from .phase import Flag, Phase, Place
from .state import Hyper, Plan, State, hyper_read, replaced
from .table import RESUMES_AT
from .turns import Players
from .values import NO_FACTS, FrozenMap, SavedMemory

if TYPE_CHECKING:
    from .workload import Workload

N = TypeVar("N", int, float)

SAVED_AT = (Phase.BATCH_END, Phase.VALID_END, Phase.EPOCH_END, Phase.TRAIN_END, Phase.SUSPEND)
"""The phases at which a training can be saved: those where it is whole, with no validation under way."""


def first_state(workload: Workload, plan: Plan) -> State:
    """The state of a training that has not begun."""
    return State(
        Phase.READY,
        plan,
        hyper=workload.hyper(),
        has_valid=workload.has_valid,
        workload=workload,
        batches_per_epoch=getattr(workload, "batches_per_epoch", None),
        players=Players.of(getattr(workload, "players", {})),
    )


def is_new_training(state: State) -> bool:
    """Whether a run from this state starts a training; otherwise it continues one."""
    return state.iteration == 0 and state.epoch == 0 and state.resume_at is None


def goes_on(state: State) -> bool:
    """Whether a run from this state goes on with what a workload has trained, as the rows of SETUP in the table say.

    Epochs without a batch train nothing: after them a workload begins as in a new training.
    """
    return resuming(state) or continuing(state)


def resume_place(state: State) -> Place | None:
    """Where a training that is saved in this state resumes; None for a finished one, which can be extended."""
    return state.resume_at or RESUMES_AT.get(state.phase)


def epochs_trained(state: State) -> int:
    """Epochs that had all their batches when this state was saved, also if the epoch's validation was just over."""
    return state.epoch + (state.resume_at is Phase.VALID_END and state.batches_over)


def stopped_at_its_begin(state: State) -> bool:
    """Whether the validation that ends here was stopped before its first batch, and so has nothing to measure."""
    return state.valid_batch == 0 and Flag.STOP_VALID in state.flags


def ready(state: State, callbacks: Sequence[Callback[Any]] = ()) -> State:
    """The state as a new call of `run` takes it up.

    SUSPEND is over with the call that it ended, and STOP_TRAINING with the training that it ended; so are
    the reasons for them.

    Args:
        state: from `start`, or the last one of an earlier call.
        callbacks: of the new call. The reason of one that only suspends is over too.

    Raises:
        ValueError: the state was taken in the middle of a run.
    """
    if state.phase not in (Phase.READY, Phase.DONE, Phase.SUSPENDED):
        raise ValueError(
            f"this state was taken at {state.phase.value}, in the middle of a run: a run begins with the state of "
            "start(), of restore(), or one that a run returned"
        )
    flags = state.flags & ~Flag.SUSPEND if state.resume_at else Flag.NONE
    reason = _without_suspension(state.reason, callbacks) if Flag.STOP_TRAINING in flags else ""
    over = {"phase": Phase.READY, "flags": flags, "reason": reason, "facts": NO_FACTS, "workload": None}
    return replaced(state, over)


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
    settings = {callback.name: settings_of(callback) for callback in callbacks}
    different = other_settings(settings, state.settings) if saved else ()
    for callback in callbacks:
        if isinstance(value := memory[callback.name], SavedMemory):
            memory[callback.name] = value.decode_with(memory_classes(callback))
    changes = {
        "memory": FrozenMap({**state.memory, **memory}),
        "settings": FrozenMap({**state.settings, **settings}),
        "notes": tuple(dict.fromkeys((*state.notes, *different))),
    }
    return replaced(state, changes), (*warnings, *different)


def settings_of(callback: Callback[Any]) -> Mapping[str, str]:
    """The arguments of the callback's factory in words, without functions and without where it writes to.

    >>> from fsm_train.callbacks import accumulate
    >>> settings_of(accumulate(4))["every"]
    '4'
    """
    words = {name: repr(value) for name, value in callback.params.items() if name not in _PLACES}
    return FrozenMap({name: text for name, text in words.items() if " at 0x" not in text})


def other_settings(here: Mapping[str, Mapping[str, str]], saved: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """A sentence for each callback with settings that differ from the saved ones.

    >>> other_settings({"accumulate": {"every": "8"}}, {"accumulate": {"every": "4"}})
    ('the callback accumulate: every=8, and was 4 when this was saved',)
    """
    notes = []
    for name in here.keys() & saved.keys():
        ours, theirs = here[name], saved[name]
        changed = [
            f"{key}={ours[key]}, and was {theirs[key]}" for key in ours if ours[key] != theirs.get(key, ours[key])
        ]
        if changed:
            notes.append(f"the callback {name}: {'; '.join(changed)} when this was saved")
    return tuple(sorted(notes))


_PLACES = ("folder", "path")


def with_hyper(
    state: State, now: Mapping[str, Hyper], callbacks: Sequence[Callback[Any]] = ()
) -> tuple[State, tuple[str, ...]]:
    """The state with the hyper-parameters that the optimizer has now, and what to warn of.

    What was changed between the calls of `run` counts, and is named with both values.

    >>> from fsm_train.testing import at
    >>> state, warnings = with_hyper(at(Phase.READY, lr=0.1), {"lr": 0.01})
    >>> state.hyper["lr"], warnings
    (0.01, ('lr is 0.01 in the optimizer, and was 0.1 in the state: the training continues with 0.01',))
    """
    hyper = hyper_read(state.hyper, now)
    if hyper is state.hyper:
        return state, ()
    warnings = []
    for name, value in without_shared(hyper).items():
        if state.hyper and repr(before := state.hyper.get(name, "nothing")) != repr(value):
            setting = (callback.name for callback in callbacks if common_names(callback.sets or frozenset(), {name}))
            sets = ", ".join(map(repr, setting))
            then = f"the training continues with {value!r}" + (f", until {sets} sets it" if sets else "")
            warnings.append(f"{name} is {value!r} in the optimizer, and was {before!r} in the state: {then}")
    return attrs.evolve(state, hyper=hyper), tuple(warnings)


INTERRUPTED = "interrupted by "
"""What the reason of a signal begins with; the name of the signal follows."""


def _without_suspension(reason: str, callbacks: Sequence[Callback[Any]]) -> str:
    """The reason without the parts that tell why an earlier call of `run` was suspended."""
    suspend = {callback.name for callback in callbacks if callback.raises is Flag.SUSPEND}
    parts = reason.split("; ")
    return "; ".join(p for p in parts if not p.startswith(INTERRUPTED) and p.partition(": ")[0] not in suspend)


def reasons_agree(recorded: str, decided: str) -> bool:
    """Whether two reasons are the same, up to what earlier versions wrote into a log more than once.

    They gave the reason of a callback at each phase where it was consulted, and kept an interruption after
    the training was resumed.
    """
    if recorded == decided:
        return True
    parts = decided.split("; ")
    names = {part.partition(": ")[0] for part in parts}
    further = [part for part in recorded.split("; ") if part not in parts]
    return set(parts) <= set(recorded.split("; ")) and all(
        part.startswith(INTERRUPTED) or part.partition(": ")[0] in names for part in further
    )


def interrupted(state: State, signal: str) -> State:
    """The state after a signal asked to leave, at a place where the table lets a training leave."""
    reason = "; ".join(filter(None, (state.reason, f"{INTERRUPTED}{signal}")))
    return attrs.evolve(state, flags=state.flags | Flag.SUSPEND, reason=reason)


def interrupting_signal(state: State) -> str | None:
    """The name of the signal that a training was suspended by; None if it was not, or by something else."""
    parts = state.reason.split("; ") if state.resume_at is not None and not state.error else ()
    return next((part.removeprefix(INTERRUPTED) for part in parts if part.startswith(INTERRUPTED)), None)


def with_late_signal(state: State, signal: str | None) -> State:
    """The last state, with a note if a signal came that the machine could not act on any more."""
    if not signal:
        return state
    note = f"{signal} came when this call of run was ending, too late to change anything"
    return attrs.evolve(state, notes=tuple(dict.fromkeys((*state.notes, note))))


def failed(state: State, error: BaseException, failure: Failure | None = None) -> State:
    """The state at TEARDOWN after this was raised. What was asked for is void."""
    text = f"{type(error).__name__}: {error}"
    return attrs.evolve(
        state, phase=Phase.TEARDOWN, error=text, reason=text, flags=Flag.NONE, facts=NO_FACTS, failure=failure
    )


def extend(
    state: State, *, epochs: int | None = None, max_steps: int | None = None, seconds: float | None = None
) -> State:
    """The state with a larger plan: `epochs` more of them, `max_steps` more, `seconds` more.

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
    if seconds is not None:
        check_not_negative("seconds", seconds)
    if state.phase not in (Phase.SUSPENDED, Phase.READY, Phase.DONE):
        raise ValueError(f"only a training between two runs can be extended, not one at {state.phase.value}")
    if not epochs and not max_steps and not seconds:
        raise ValueError("extend by what? give epochs=, max_steps= or seconds=, or several of them")
    plan = attrs.evolve(
        state.plan,
        epochs=_larger(state.plan.epochs, epochs, state.epoch),
        max_steps=_larger(state.plan.max_steps, max_steps, state.step),
        seconds=_larger(state.plan.seconds, seconds, state.elapsed),
    )
    if plan.epochs is not None and state.epoch >= plan.epochs:
        raise ValueError(f"all {plan.epochs} epochs of the plan are done: extend with epochs= as well")
    if plan.max_steps is not None and state.step >= plan.max_steps:
        raise ValueError(f"all {plan.max_steps} steps of the plan are done: extend with max_steps= as well")
    if plan.seconds is not None and state.elapsed >= plan.seconds:
        raise ValueError(f"all {plan.seconds:g} seconds of the plan are over: extend with seconds= as well")
    return attrs.evolve(state, plan=plan)


def _larger(limit: N | None, more: N | None, so_far: N) -> N | None:
    if more is None:
        return limit
    return (so_far if limit is None else limit) + more
