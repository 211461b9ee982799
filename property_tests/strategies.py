"""What the properties are tried on: plans, worlds, answers, callbacks and whole trainings.

A drawn callback is a table from moments to answers, so that it is pure, and shrinks to the one
answer that matters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set
from typing import Any

import attrs
from hypothesis import strategies as st

from fsm_train.core.callback import Callback
from fsm_train.core.phase import BATCH_PHASES, CONSULTED, Flag, Operation, Phase
from fsm_train.core.state import Plan, State
from fsm_train.core.table import READABLE
from fsm_train.core.transition import UNCHANGED, Command, Transition
from fsm_train.core.values import FrozenMap
from fsm_train.interpreter import start
from fsm_train.worlds.scripted import Scripted

BETWEEN = tuple(phase for phase in CONSULTED if phase not in (Phase.SETUP, Phase.SUSPEND, Phase.TEARDOWN))
"""The phases of a training that know nothing of the calls of run that it was made in."""

NAMES = ("a", "b", "c", "d")
HYPER = {"lr": 0.1, **dict.fromkeys(NAMES, 1.0)}

MANY = 1000
"""More operations than any of these trainings takes."""

Moment = tuple[Phase, int]


@attrs.frozen
class Do(Command):
    what: int


@attrs.frozen
class DoLast(Command):
    what: int
    last = True


class Recording(Scripted):
    """A scripted workload that notes what it was told to do, and can be interrupted or broken in the middle of it.

    Attributes:
        told: the operations, hyper-parameters and commands, in order.
        done: the operations among them.
        interrupt_after: when so many operations are done, somebody asks to leave.
        break_after: when so many operations are done, the next one raises.
    """

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.told: list[object] = []
        self.done: list[Operation] = []
        self.interrupt_after = self.break_after = -1

    def set_hyper(self, changes: Mapping[str, Any]) -> None:
        self.told.append(dict(changes))
        super().set_hyper(changes)

    def carry_out(self, command: Command, state: State) -> None:
        self.told.append(command)
        super().carry_out(command, state)

    def operate(self, operation: Operation, *given: State) -> object:
        self.told.append(operation)
        self.done.append(operation)
        assert len(self.done) < MANY, "this training has no end"
        if len(self.done) == self.interrupt_after:
            self.interrupt = "SIGTERM"
        if len(self.done) == self.break_after + 1:
            raise OSError("broken")
        return getattr(Scripted, operation.value)(self, *given)


def _operate(operation: Operation) -> Callable[..., object]:
    return lambda self, *given: self.operate(operation, *given)


for _operation in Operation:
    setattr(Recording, _operation.value, _operate(_operation))


@attrs.frozen
class World:
    """What a workload will measure; the same world any number of times."""

    batches: tuple[int, ...] = (2,)  # of each epoch, over and over
    valid_batches: int | None = None  # None: no validation data
    stepped: tuple[bool, ...] = (True,)  # of each iteration, over and over
    players: Mapping[str, int] = FrozenMap()  # who takes turns, and at each so-many-th batch

    def workload(self) -> Recording:
        validation = {"valid_batches": self.valid_batches, "valid_loss": lambda state: 1.0 / (1 + state.step)}
        return Recording(
            batches=lambda state: self.batches[state.epoch % len(self.batches)],
            batch_size=lambda state: 1 + state.iteration % 3,
            loss=lambda state: state.random("loss").random(),
            stepped=lambda state: self.stepped[state.iteration % len(self.stepped)],
            grad_norm=lambda state: 0.5 * state.iteration,
            hyper=HYPER,
            players=self.players,
            **(validation if self.valid_batches is not None else {}),
        )


@attrs.frozen
class Training:
    world: World
    plan: Plan
    callbacks: tuple[Callback[Any], ...]

    def start(self) -> State:
        return start(self.world.workload(), epochs=self.plan.epochs, max_steps=self.plan.max_steps, seed=self.plan.seed)


def plans() -> st.SearchStrategy[Plan]:
    """Plans that end: where any step may be skipped, max_steps alone need never be reached."""
    max_steps = st.sampled_from([None, None, None, 3, 2, 1])
    return st.builds(Plan, epochs=st.integers(1, 3), max_steps=max_steps, seed=st.integers(0, 3))


def worlds() -> st.SearchStrategy[World]:
    return st.builds(
        World,
        batches=st.lists(st.sampled_from([2, 3, 1]), min_size=1, max_size=2).map(tuple),
        valid_batches=st.sampled_from([None, 2, 1]),
        stepped=st.sampled_from([(True,), (True, False)]),
        players=st.sampled_from([FrozenMap(), FrozenMap(D=1, G=2), FrozenMap(G=2, D=1, E=1)]),
    )


@functools.cache  # making a strategy takes longer than drawing from it
def moments(phases: tuple[Phase, ...] = CONSULTED) -> st.SearchStrategy[Moment]:
    return st.tuples(st.sampled_from(phases), st.integers(0, 3))


def moment(state: State) -> Moment:
    """When this is: the batch at the phases of one, else the epoch."""
    return state.phase, state.iteration if state.phase in BATCH_PHASES else state.epoch


@functools.cache
def legal(phase: Phase, *, has_valid: bool = True) -> tuple[Flag, ...]:
    """The flags that may be raised at this phase, SUSPEND excepted."""
    outside = Flag.SUSPEND if has_valid else Flag.SUSPEND | Flag.VALIDATE
    return tuple(flag for flag in Flag if phase in READABLE[flag] and flag not in outside)


@functools.cache
def flags(allowed: tuple[Flag, ...]) -> st.SearchStrategy[Flag]:
    """Any union of the allowed ones."""
    if not allowed:
        return st.just(Flag.NONE)
    return st.lists(st.sampled_from(allowed), max_size=2, unique=True).map(
        lambda chosen: Flag(sum(flag.value for flag in chosen))
    )


@functools.cache
def commands() -> st.SearchStrategy[tuple[Command, ...]]:
    return st.lists(st.builds(Do, st.integers(0, 3)) | st.builds(DoLast, st.integers(0, 3)), max_size=2).map(tuple)


@functools.cache
def transitions(
    allowed: tuple[Flag, ...] = tuple(Flag), hyper: tuple[str, ...] = ("lr",)
) -> st.SearchStrategy[Transition]:
    """Answers that raise some of the allowed flags, and set some of the hyper-parameters."""
    return st.builds(
        Transition,
        flags=flags(allowed),
        hyper=st.dictionaries(st.sampled_from(hyper), st.sampled_from([0.5, 2.0]), max_size=2),
        memory=st.just(UNCHANGED) | st.integers(0, 3),
        commands=commands(),
        reason=st.sampled_from(["", "enough", "a"]),
    )


@st.composite
def callbacks(
    draw: st.DrawFn, name: str, phases: tuple[Phase, ...] = CONSULTED, *, has_valid: bool = True
) -> Callback[Any]:
    """A callback that answers at up to four moments what was drawn, and may remember when that was."""
    when = draw(st.lists(moments(phases), min_size=1, max_size=4, unique=True))
    answers = {m: draw(transitions(legal(m[0], has_valid=has_valid), hyper=(name,))) for m in when}
    at = draw(st.lists(st.sampled_from(phases), max_size=2).map(tuple))
    needs: Set[str] = frozenset({"loss"}) if {Phase.LOSS_END, Phase.BATCH_END}.intersection(at) else frozenset()

    def decide(state: State, memory: object) -> Transition | None:
        answer = answers.get(moment(state))
        if answer is not None and answer.memory is UNCHANGED:
            return attrs.evolve(answer, memory=(state.phase.value, state.iteration, state.facts.get("loss")))
        return answer

    return Callback(
        name,
        (*at, *(phase for phase, _ in when)),
        decide,
        needs=needs,
        every=draw(st.sampled_from([1, 1, 2])),
        order=draw(st.integers(-1, 1)),
    )


@st.composite
def declaring(draw: st.DrawFn, name: str, *, has_valid: bool) -> Callback[Any]:
    """A callback whose answers are a table of what it declares to read, and which may remember how often it was."""
    phases = draw(st.lists(st.sampled_from(CONSULTED), min_size=1, max_size=3, unique=True))
    values = st.tuples(st.sampled_from(phases), st.integers(0, 1), st.integers(0, 1), st.sampled_from([1, 2, 3]))
    answers = {
        when: draw(transitions(legal(when[0], has_valid=has_valid), hyper=(name,)))
        for when in draw(st.lists(values, min_size=1, max_size=6, unique=True))
    }
    counts = draw(st.booleans())

    def decide(state: State, memory: Any) -> Transition | None:
        key = state.phase, state.epoch % 2, state.pending % 2, state.facts["batch_size"]
        answer = answers.get(key)  # type: ignore[arg-type]
        if answer is not None and counts and answer.memory is UNCHANGED:
            return attrs.evolve(answer, memory=((memory or 0) + 1) % 3)
        return answer

    return Callback(name, tuple(phases), decide, reads={"epoch", "pending", "batch_size"})


@st.composite
def trainings(draw: st.DrawFn, phases: tuple[Phase, ...] = CONSULTED) -> Training:
    """A world, a plan, and up to three callbacks that are consulted at some of the phases."""
    world = draw(worlds())
    named = NAMES[: draw(st.integers(1, 3))]
    drawn = [draw(callbacks(name, phases, has_valid=world.valid_batches is not None)) for name in named]
    return Training(world, draw(plans()), tuple(drawn))
