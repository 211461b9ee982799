"""How the answers of one phase become one decision.

The laws: flags by union; memories each to its own; hyper-parameters by key, where two different
values are an error; commands by (order, position in the list). So nothing but the sequence of
equal-ordered commands depends on the order of the callbacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from .callback import Callback, ask, blame
from .errors import ConflictError
from .phase import STOP_FLAGS, Flag, Phase
from .state import Hyper, State
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
    stops = answer.flags & STOP_FLAGS
    return Decision(
        flags=answer.flags,
        hyper={name: (_like(state.hyper[name], value), callback.name) for name, value in answer.hyper.items()},
        memory={} if answer.memory is UNCHANGED else {callback.name: answer.memory},
        commands=_sorted(
            ((command.last, callback.order, position, i), command) for i, command in enumerate(answer.commands)
        ),
        reasons={callback.name: f"{callback.name}: {answer.reason}" if answer.reason else callback.name}
        if stops
        else {},
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
        flags=a.flags | b.flags,
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
    answers = [(callback, ask(callback, state)) for callback in callbacks]
    answers = [(callback, answer) for callback, answer in answers if answer is not NOTHING]
    for callback, answer in answers:
        if why := _beyond_declared(callback, answer) or _refusal(answer, state):
            raise blame(callback, state, why)
    return answers


def _beyond_declared(callback: Callback[Any], answer: Transition) -> str | None:
    """What in this answer the callback did not declare, if it declared anything."""
    if callback.raises is not None and (flags := answer.flags & ~callback.raises):
        return f"it raised {term_name(flags)}, which is not in its raises={term_name(callback.raises) or 'Flag.NONE'}"
    if callback.sets is not None and (keys := sorted(answer.hyper.keys() - callback.sets)):
        return f"it set {', '.join(keys)}, which is not in its sets={sorted(callback.sets)}"
    if callback.commands is not None:
        for command in answer.commands:
            if type(command) not in callback.commands:
                names = sorted(kind.__name__ for kind in callback.commands)
                return f"it gave the command {command!r}, which is not among its commands={names}"
    return None


def _refusal(answer: Transition, state: State) -> str | None:
    """What makes this answer impossible in this state, if anything does."""
    for flag in too_late(answer.flags, state.phase):
        where = ", ".join(phase.value for phase in READABLE[flag])
        return f"it raised {flag.name}, but nothing reads that any more before it falls; raise it at one of: {where}"
    if Flag.VALIDATE in answer.flags and not state.has_valid:
        return "it raised VALIDATE, but there is no validation data: give the workload some (valid=…)"
    for name, value in answer.hyper.items():
        if name not in state.hyper:
            there_are = ", ".join(state.hyper) or "none"
            return f"it sets {name!r}, which is no hyper-parameter of this optimizer: there are {there_are}"
        now = state.hyper[name]
        groups = len(now) if isinstance(now, tuple) else 1
        if isinstance(value, tuple) and len(value) != groups:
            return f"it sets {name!r} to {len(value)} values, but there are {groups} parameter groups"
    if answer.memory is not UNCHANGED and (why := unsaveable(answer.memory)):
        return why
    return None


def decide(state: State, answers: Iterable[Answer], positions: Mapping[str, int] = EMPTY) -> tuple[State, Decision]:
    """The state after the answers, and the one decision that they make together.

    `positions` are the places of the callbacks in the list, by name; without them, those of the answers.

    Raises:
        ConflictError: two of them want a hyper-parameter to be different things.
    """
    decision = Decision()
    # By name, so that among three that disagree the same two are blamed in whatever order they come.
    for i, (callback, answer) in sorted(enumerate(answers), key=lambda numbered: numbered[1][0].name):
        mine = decision_of(callback, answer, state, positions.get(callback.name, i))
        decision = merge(decision, mine, state.phase)
    hyper = {name: value for name, (value, _) in decision.hyper.items()}
    reasons = [state.reason] if state.reason else []
    reasons += sorted(reason for reason in decision.reasons.values() if f"; {reason};" not in f"; {state.reason};")
    after = attrs.evolve(
        state,
        flags=state.flags | decision.flags,
        hyper=FrozenMap({**state.hyper, **hyper}) if hyper else state.hyper,
        memory=FrozenMap({**state.memory, **decision.memory}) if decision.memory else state.memory,
        reason="; ".join(reasons),
    )
    return after, decision


def _sorted(commands: Iterable[Ordered]) -> tuple[Ordered, ...]:
    return tuple(sorted(commands, key=lambda command: command[0]))


def _like(now: Hyper, value: Hyper) -> Hyper:
    """The value in the form in which the state holds it: one number, or one per group."""
    if isinstance(now, tuple):
        return value if isinstance(value, tuple) else (value,) * len(now)
    return value[0] if isinstance(value, tuple) else value
