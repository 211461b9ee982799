"""How the answers of one phase become one decision.

The laws: flags by union; memories each to its own; hyper-parameters by key, where two different
values are an error; commands by (order, position in the list). So nothing but the sequence of
equal-ordered commands depends on the order of the callbacks.

Rule of this file: what an answer leaves unchanged costs nothing, since this runs at every watched phase.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from .arguments import kind_of
from .callback import Callback, callback_error
from .errors import CallbackError, ConflictError
from .joint_hyper import joined, split
from .phase import STOP_FLAGS, Flag, Phase, union
from .state import Draft, Hyper, State, replaced
from .table import READABLE, term_name, too_late
from .transition import NOTHING, UNCHANGED, Command, Transition
from .values import EMPTY, FrozenMap, unsaveable

Answer = tuple[Callback[Any], Transition]
Merged = tuple[Mapping[str, object], Mapping[str, Hyper], tuple[Command, ...]]
NOTHING_MERGED: Merged = (EMPTY, EMPTY, ())


@attrs.frozen
class Decision:
    """What the callbacks of one phase want done; the rest of what they want is in the state after it.

    Attributes:
        hyper: the hyper-parameters to set.
        commands: in the order in which they are carried out.
    """

    hyper: Mapping[str, Hyper] = EMPTY
    commands: tuple[Command, ...] = ()


def consult(callbacks: Sequence[Callback[Any]], state: State) -> list[Answer]:
    """The answers of these callbacks to one state, without the empty ones.

    Raises:
        CallbackError: one of them raised, answered something that is no Transition or that cannot
            be done, or raised a flag too late for anything to read it.
    """
    answers: list[Answer] = []
    memory = state.memory
    for callback in callbacks:
        try:
            answer = callback.decide(state, memory.get(callback.name, callback.memory))
        except Exception as error:
            raise raised_by(callback, state, error) from error
        if answer is not None and answer is not NOTHING:
            answers.append(accepted(callback, answer, state))
    return answers


def raised_by(callback: Callback[Any], state: State, error: Exception) -> CallbackError:
    """The error for a callback that raised this one."""
    return callback_error(callback, state, f"it raised {type(error).__name__}: {error}{_hint(error)}")


def accepted(callback: Callback[Any], answer: Transition, state: State) -> Answer:
    """The answer, with who gave it.

    Raises:
        CallbackError: it is no answer, or cannot be done.
    """
    if why := _refusal(callback, answer, state):
        raise callback_error(callback, state, why)
    return callback, answer


def _hint(error: Exception) -> str:
    """What to write instead, if the callback reached for the workload, which a state has only outside of a run."""
    if isinstance(error, AttributeError) and error.obj is None and error.name is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None and "workload" in trace.tb_frame.f_code.co_names:
            return (
                ". During a run state.workload is None, since a callback never touches the real things: return a "
                "command in a Transition (fsm_train.commands, or one of your own with @carries_out), or read them "
                "with a sensor (sensors={…})"
            )
    return ""


def _refusal(callback: Callback[Any], answer: Transition, state: State) -> str | None:
    """What makes this answer impossible, if anything does: by what the callback declared, or in this state."""
    if type(answer) is not Transition:
        return (
            f"it returned {kind_of(answer)}, {answer!r:.80}: return a Transition, {_as_transition(answer)}, or None "
            "when there is nothing to say"
        )
    if answer.flags is not Flag.NONE and (
        why := _refused_flags(answer.flags, callback.raises, state.phase, state.has_valid)
    ):
        return why
    if answer.hyper and (why := _refused_hyper(answer.hyper, callback.sets, state.hyper)):
        return why
    if answer.commands and (why := _refused_commands(answer.commands, callback.commands, state.phase)):
        return why
    if answer.memory is UNCHANGED or answer.memory is state.memory.get(callback.name, UNCHANGED):
        return None  # the memory that it has was checked when it was set
    return unsaveable(answer.memory)


def _as_transition(answer: object) -> str:
    if isinstance(answer, Flag):
        return f"Transition(flags=Flag.{answer.name})"
    if isinstance(answer, Command):
        return f"Transition(commands=({type(answer).__name__}(…),))"
    if isinstance(answer, Mapping):
        return "such as Transition(hyper={'lr': …})"
    return "for example Transition(flags=Flag.STOP_TRAINING)"


@functools.lru_cache
def _refused_flags(flags: Flag, declared: Flag | None, phase: Phase, has_valid: bool) -> str | None:
    if declared is not None and (others := flags & ~declared):
        return f"it raised {term_name(others)}, which is not in its raises={term_name(declared) or 'Flag.NONE'}"
    for flag in too_late(flags, phase):
        where = ", ".join(there.value for there in READABLE[flag])
        return f"it raised {flag.name}, but nothing reads that any more before it falls; raise it at one of: {where}"
    if Flag.VALIDATE in flags and not has_valid:
        return "it raised VALIDATE, but there is no validation data: give the workload some (valid=…)"
    return None


def _refused_commands(
    commands: Sequence[Command], declared: frozenset[type[Command]] | None, phase: Phase
) -> str | None:
    for command in commands:
        kind = type(command)
        if declared is not None and kind not in declared:
            names = sorted(kind.__name__ for kind in declared)
            return f"it gave the command {command!r}, which is not among its commands={names}"
        if kind.useful_at is not None and phase not in kind.useful_at:
            where = ", ".join(there.value for there in kind.useful_at)
            return f"it gave the command {command!r}, but nothing can come of it here; give it at one of: {where}"
    return None


def _refused_hyper(
    wanted: Mapping[str, Hyper], declared: frozenset[str] | None, now: Mapping[str, Hyper]
) -> str | None:
    for name, value in wanted.items():
        if declared is not None and name not in declared:
            keys = ", ".join(sorted(wanted.keys() - declared))
            return f"it set {keys}, which is not in its sets={sorted(declared)}"
        if name not in now:
            there_are = ", ".join(now) or "none"
            meant = ". Did you mean 'lr'?" if name == "learning_rate" else ""
            return f"it sets {name!r}, which is no hyper-parameter of this optimizer: there are {there_are}{meant}"
        own = now[name]
        groups = len(own) if isinstance(own, tuple) else 1
        if isinstance(value, tuple) and len(value) != groups:
            return f"it sets {name!r} to {len(value)} values, but there are {groups} parameter groups"
    if len(wanted) > 1:
        try:
            split(now, wanted)
        except ValueError as error:
            return str(error)
    return None


def decide(state: State, answers: Sequence[Answer], positions: Mapping[str, int] = EMPTY) -> tuple[State, Decision]:
    """The state after the answers, and what is to be done: `merged`, in records.

    Raises:
        ConflictError: two of them want a hyper-parameter to be different things.
    """
    changes, hyper, commands = merged(state, answers, positions)
    return replaced(state, changes) if changes else state, Decision(hyper, commands)


def merged(at: Draft, answers: Sequence[Answer], positions: Mapping[str, int] = EMPTY) -> Merged:
    """What the answers change in the state, by field; the hyper-parameters to set; and the commands in their order.

    `positions` are the places of the callbacks in the list, by name; without them, those of the answers.

    Raises:
        ConflictError: two of them want a hyper-parameter to be different things.
    """
    flags, before = at.flags, at.memory
    reasons: list[str] = []
    hyper: dict[str, Hyper] = {}
    memory: dict[str, object] = {}
    commands: tuple[Command, ...] = ()
    for callback, answer in answers:
        if answer.flags is not Flag.NONE:
            flags = union(flags, answer.flags)
            if _stops(answer.flags) and not _gave_reason(at, callback.name, answer.flags):
                reasons.append(f"{callback.name}: {answer.reason}" if answer.reason else callback.name)
        if answer.memory is not UNCHANGED and answer.memory is not before.get(callback.name, UNCHANGED):
            memory[callback.name] = answer.memory
        if answer.hyper:
            for key, value in split(at.hyper, answer.hyper).items():
                if hyper.setdefault(key, value) != value:
                    raise _conflict(at, answers)
        if answer.commands:
            commands += answer.commands
    if len(commands) > 1:
        commands = _in_order(at, answers, positions)

    changes: dict[str, object] = {}
    to_set: Mapping[str, Hyper] = EMPTY
    if flags is not at.flags:
        changes["flags"] = flags
    if hyper:
        to_set = joined(at.hyper, hyper)
        changes["hyper"] = FrozenMap({**at.hyper, **to_set})
    if memory:
        changes["memory"] = FrozenMap({**before, **memory})
    if reasons:
        earlier = f"; {at.reason};"
        new = sorted(reason for reason in reasons if f"; {reason};" not in earlier)
        changes["reason"] = "; ".join([at.reason] * bool(at.reason) + new)
    return changes, to_set, commands


def _in_order(at: Draft, answers: Sequence[Answer], positions: Mapping[str, int]) -> tuple[Command, ...]:
    """The commands of these answers in the order in which they are carried out.

    Raises:
        ConflictError: two callbacks give commands whose result would depend on the list.
    """
    placed: list[tuple[tuple[int, int, int], Command]] = []
    givers = 0
    for i, (callback, answer) in enumerate(answers):
        givers += bool(answer.commands)
        position = positions.get(callback.name, i)
        placed += [((command.last, callback.order, position), command) for command in answer.commands]
    if givers > 1 and any(command.alone or command.changes_hyper for _, command in placed):
        _check_together(at, answers)
    placed.sort(key=_place)
    return tuple([command for _, command in placed])


def _conflict(state: Draft, answers: Sequence[Answer]) -> ConflictError:
    """What two of them disagree about: the same two, in whatever order the answers came."""
    by_name = sorted(((c.name, split(state.hyper, a.hyper)) for c, a in answers), key=_place)
    wishes = {
        key: [(name, wanted[key]) for name, wanted in by_name if key in wanted]
        for key in sorted({key for _, wanted in by_name for key in wanted})
    }
    key, (writer, value), (other_writer, other) = next(
        (key, wished[0], wish) for key, wished in wishes.items() for wish in wished if wish[1] != wished[0][1]
    )
    return ConflictError(
        f"at {state.phase.value} {writer!r} sets {key} to {value!r} and {other_writer!r} to {other!r}: "
        "leave one of them out, or let them set it at different phases"
    )


def _check_together(state: Draft, answers: Sequence[Answer]) -> None:
    """Refuse commands of two callbacks whose result would depend on the list, also where they are not declared.

    Raises:
        ConflictError: both give a command that only one may give, or set hyper-parameters by commands of one order.
    """
    by_name = sorted(answers, key=lambda answer: answer[0].name)
    alone: dict[type[Command], str] = {}
    setting: dict[int, str] = {}
    for callback, kind in ((callback, type(command)) for callback, answer in by_name for command in answer.commands):
        name = callback.name
        if kind.alone and (first := alone.setdefault(kind, name)) != name:
            raise ConflictError(
                f"at {state.phase.value} {first!r} and {name!r} both give the command {kind.__name__}, "
                f"which only one callback of a run may: {kind.instead}"
            )
        if kind.changes_hyper and (first := setting.setdefault(callback.order, name)) != name:
            raise ConflictError(
                f"at {state.phase.value} {first!r} and {name!r} both set hyper-parameters by a command: leave one out, "
                "make one of them, or give them a different order="
            )


@functools.cache
def _stops(flags: Flag) -> bool:
    return bool(flags & STOP_FLAGS)


def _gave_reason(state: Draft, name: str, flags: Flag) -> bool:
    """Whether what this callback asks for is asked for already, and the reason names the callback."""
    asked_already = flags & STOP_FLAGS in state.flags
    return asked_already and any(part == name or part.startswith(f"{name}: ") for part in state.reason.split("; "))


_place = operator.itemgetter(0)
