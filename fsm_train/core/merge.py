"""How the answers of one phase become one decision.

The laws: flags by union; memories each to its own; hyper-parameters by key, where two different
values are an error; commands by (order, position in the list). So nothing but the sequence of
equal-ordered commands depends on the order of the callbacks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from .callback import Callback, ask, blame
from .errors import ConflictError
from .phase import STOP_FLAGS, Flag, Phase, union
from .state import Hyper, State, replaced
from .table import READABLE, term_name, too_late
from .transition import NOTHING, UNCHANGED, Command, Transition
from .values import EMPTY, FrozenMap, unsaveable

Answer = tuple[Callback[Any], Transition]
Ordered = tuple[tuple[int, int, int, int], Command]


@attrs.frozen
class Decision:
    """What some callbacks of one phase want together.

    Attributes:
        flags: the union of what they raise.
        hyper: the value for each key, and who wants it.
        memory: what each remembers, by its name.
        commands: in the order in which they are carried out, each with that order.
        reasons: why it stops, by callback.
    """

    flags: Flag = Flag.NONE
    hyper: Mapping[str, tuple[Hyper, str]] = EMPTY
    memory: Mapping[str, object] = EMPTY
    commands: tuple[Ordered, ...] = ()
    reasons: Mapping[str, str] = EMPTY


def decision_of(callback: Callback[Any], answer: Transition, state: State, position: int = 0) -> Decision:
    """One callback's answer as a decision; `position` is its place in the list."""
    name = callback.name
    reasons: Mapping[str, str] = EMPTY
    if answer.flags is not Flag.NONE and answer.flags.value & STOP_FLAGS.value:
        reasons = FrozenMap({name: f"{name}: {answer.reason}" if answer.reason else name})
    return Decision(
        answer.flags,
        {key: (_like(state.hyper[key], value), name) for key, value in answer.hyper.items()} if answer.hyper else EMPTY,
        EMPTY if answer.memory is UNCHANGED else {name: answer.memory},
        _sorted(((c.last, callback.order, position, i), c) for i, c in enumerate(answer.commands))
        if answer.commands
        else (),
        reasons,
    )


def merge(a: Decision, b: Decision, phase: Phase) -> Decision:
    """Both decisions as one. Associative, and commutative; NOTHING decided changes nothing.

    Raises:
        ConflictError: both want a hyper-parameter, and not the same value.
    """
    for name in sorted(a.hyper.keys() & b.hyper.keys()):
        (value, writer), (other, other_writer) = sorted((a.hyper[name], b.hyper[name]), key=lambda w: w[1])
        if value != other:
            raise ConflictError(
                f"at {phase.value} {writer!r} sets {name} to {value!r} and {other_writer!r} to {other!r}: "
                "leave one of them out, or let them set it at different phases"
            )
    return Decision(
        flags=union(a.flags, b.flags),
        hyper={**a.hyper, **{k: min(v, a.hyper.get(k, v), key=lambda w: w[1]) for k, v in b.hyper.items()}},
        memory={**a.memory, **b.memory},
        commands=_sorted(a.commands + b.commands),
        reasons={**a.reasons, **b.reasons},
    )


def consult(callbacks: Sequence[Callback[Any]], state: State) -> list[Answer]:
    """Everybody's answer to the same state, without those who have nothing to say.

    Raises:
        CallbackError: one of them raised, answered something that is no Transition or that cannot
            be done, or raised a flag too late for anything to read it.
    """
    answers = []
    for callback in callbacks:
        answer = ask(callback, state)
        if answer is not NOTHING:
            if why := _refusal(callback, answer, state):
                raise blame(callback, state, why)
            answers.append((callback, answer))
    return answers


def _refusal(callback: Callback[Any], answer: Transition, state: State) -> str | None:
    """What makes this answer impossible, if anything does: by what the callback declared, or in this state."""
    if answer.flags is not Flag.NONE and (
        why := _refused_flags(answer.flags, callback.raises, state.phase, state.has_valid)
    ):
        return why
    if answer.hyper and (why := _refused_hyper(answer.hyper, callback.sets, state.hyper)):
        return why
    if answer.commands and callback.commands is not None:
        for command in answer.commands:
            if type(command) not in callback.commands:
                names = sorted(kind.__name__ for kind in callback.commands)
                return f"it gave the command {command!r}, which is not among its commands={names}"
    if answer.memory is UNCHANGED or answer.memory is state.memory.get(callback.name, UNCHANGED):
        return None  # what it remembers already was looked at then
    return unsaveable(answer.memory)


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


def _refused_hyper(
    wanted: Mapping[str, Hyper], declared: frozenset[str] | None, now: Mapping[str, Hyper]
) -> str | None:
    if declared is not None and (keys := sorted(wanted.keys() - declared)):
        return f"it set {', '.join(keys)}, which is not in its sets={sorted(declared)}"
    for name, value in wanted.items():
        if name not in now:
            there_are = ", ".join(now) or "none"
            return f"it sets {name!r}, which is no hyper-parameter of this optimizer: there are {there_are}"
        own = now[name]
        groups = len(own) if isinstance(own, tuple) else 1
        if isinstance(value, tuple) and len(value) != groups:
            return f"it sets {name!r} to {len(value)} values, but there are {groups} parameter groups"
    return None


def decide(state: State, answers: Sequence[Answer], positions: Mapping[str, int] = EMPTY) -> tuple[State, Decision]:
    """The state after the answers, and the one decision that they make together.

    `positions` are the places of the callbacks in the list, by name; without them, those of the answers.

    Raises:
        ConflictError: two of them want a hyper-parameter to be different things.
    """
    if len(answers) == 1:
        ((callback, answer),) = answers
        decision = decision_of(callback, answer, state, positions.get(callback.name, 0))
    else:
        decision = Decision()
        # By name, so that among three that disagree the same two are blamed in whatever order they come.
        for i, (callback, answer) in sorted(enumerate(answers), key=lambda numbered: numbered[1][0].name):
            mine = decision_of(callback, answer, state, positions.get(callback.name, i))
            decision = merge(decision, mine, state.phase)
    return _after(state, decision), decision


def _after(state: State, decision: Decision) -> State:
    changes: dict[str, object] = {}
    if decision.flags is not Flag.NONE:
        changes["flags"] = union(state.flags, decision.flags)
    if decision.hyper:
        changes["hyper"] = FrozenMap({**state.hyper, **{name: value for name, (value, _) in decision.hyper.items()}})
    if decision.memory:
        changes["memory"] = FrozenMap({**state.memory, **decision.memory})
    if decision.reasons:
        said = f"; {state.reason};"
        new = sorted(reason for reason in decision.reasons.values() if f"; {reason};" not in said)
        changes["reason"] = "; ".join([state.reason] * bool(state.reason) + new)
    return replaced(state, **changes) if changes else state


def _sorted(commands: Iterable[Ordered]) -> tuple[Ordered, ...]:
    return tuple(sorted(commands, key=lambda command: command[0]))


def _like(now: Hyper, value: Hyper) -> Hyper:
    """The value in the form in which the state holds it: one number, or one per group."""
    if isinstance(now, tuple):
        return value if isinstance(value, tuple) else (value,) * len(now)
    return value[0] if isinstance(value, tuple) else value
