"""A signal at any moment: the run returns a state, and what goes on from it is the undisturbed training."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import cursor, interpreter, restore, run, signals, start
from fsm_train.callbacks import checkpoint
from fsm_train.core.callback import Callback
from fsm_train.core.phase import CONSULTED, Flag, Operation, Phase
from fsm_train.core.runs import interrupted
from fsm_train.core.state import Plan, State
from fsm_train.core.transition import Command, Transition
from fsm_train.data import generators
from property_tests import strategies as our
from property_tests.test_runs import operations
from tests.checkpoints.comparison import end_of
from tests.checkpoints.failing_training import EPOCHS, Fault, faults, library, undisturbed, workload

WORLD = our.World(batches=(2, 3), valid_batches=2)
PLAN = Plan(epochs=2)
NEVER = -1


class Signalled(our.Recording):
    """A scripted training that gets a signal at a moment: its operations and consultations are counted together.

    Attributes:
        number: the signal.
        moment: when it comes; -1 for never.
        now: how many moments have been.
        batches_after: training batches that ended after the signal, in the call of run in which it came.
    """

    def __init__(self, number: signal.Signals, moment: int, **script: Any) -> None:
        super().__init__(**script)
        self.number, self.moment = number, moment
        self.now = self.batches_after = 0

    def pass_moment(self) -> None:
        self.now += 1
        if self.now == self.moment:
            signal.raise_signal(self.number)

    def operate(self, operation: Operation, *given: State) -> object:
        self.pass_moment()
        return super().operate(operation, *given)

    def carry_out(self, command: Command, state: State) -> None:
        if isinstance(command, Inside):
            command.do()
        else:
            super().carry_out(command, state)


@attrs.frozen
class Inside(Command):
    """Do something inside of the run."""

    do: Callable[[], object] = attrs.field(eq=False, repr=False)


def watching(work: Signalled) -> Callback[Any]:
    """A callback that is consulted everywhere, and remembers each of its consultations but those of one call of run."""
    outside = {Phase.SETUP, Phase.SUSPEND, Phase.TEARDOWN}

    def decide(state: State, times: int) -> Transition | None:
        work.pass_moment()
        if work.now > work.moment > 0 and state.phase is Phase.BATCH_END:
            work.batches_after += 1
        return None if state.phase in outside or state.phase in _ABANDONED else Transition(memory=times + 1)

    return Callback("watching", CONSULTED, decide, memory=0)


_ABANDONED = {Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END}
"""The phases of a validation, which is done again if it is left."""


def signalled(number: signal.Signals, moment: int) -> Signalled:
    plain = WORLD.workload()
    work = Signalled.__new__(Signalled)
    work.__dict__.update(vars(plain))
    work.number, work.moment, work.now, work.batches_after = number, moment, 0, 0
    return work


def begun(work: Signalled) -> State:
    return start(work, epochs=PLAN.epochs, seed=0)


def same_end(after: State, final: State) -> bool:
    return attrs.evolve(after, reason="", notes=()) == attrs.evolve(final, reason="", notes=())


def left_at_is_the_same(number: signal.Signals, moment: int) -> State:
    """The state that the run returns; what goes on from it is compared with the undisturbed training.

    Raises:
        AssertionError: they differ.
        BaseException: the run did not return.
    """
    work, alone = signalled(number, moment), signalled(number, NEVER)
    final = run(begun(alone), [watching(alone)])
    left = run(begun(work), [watching(work)])
    assert left.phase in (Phase.SUSPENDED, Phase.DONE)
    assert work.batches_after <= 1
    if left.phase is Phase.DONE:
        assert left.notes == (f"{number.name} came when this call of run was ending, too late to change anything",)
    else:
        assert left.reason == f"interrupted by {number.name}" or left.notes
    after = left if left.phase is Phase.DONE else run(left, [watching(work)])
    assert same_end(after, final)
    assert operations(work.told) == operations(alone.told)
    return left


@contextmanager
def as_in_a_shell() -> Iterator[None]:
    """The handlers that a program has which puts none in place: pytest has others."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def moments() -> range:
    """All moments of the undisturbed training."""
    work = signalled(signal.SIGTERM, NEVER)
    run(begun(work), [watching(work)])
    return range(1, work.now + 1)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_at_each_moment(number: signal.Signals) -> None:
    """Exhaustively: within each operation and at each phase, TRAIN_END, TEARDOWN and the last operation among them."""
    with as_in_a_shell():
        left = [left_at_is_the_same(number, moment) for moment in moments()]

    assert len(left) > 100
    assert [state.phase for state in left[-3:]] == [Phase.DONE] * 3  # TRAIN_END, TEARDOWN, finish
    assert {state.phase for state in left[:-3]} == {Phase.SUSPENDED}


# ------------------------------------------------------------------------------------ one inside another


def nested_is_the_same(where: Phase, moment: int) -> None:
    """A run inside of a command at this phase gets a signal at this moment: both are left, and both go on.

    Raises:
        AssertionError: one of them is not left, or ends otherwise.
    """
    inner, outer = signalled(signal.SIGTERM, moment), signalled(signal.SIGTERM, NEVER)
    ended: list[State] = []

    def inside() -> None:
        ended.append(run(begun(inner), [watching(inner)]))

    def command(state: State, memory: object) -> Transition | None:
        return None if ended else Transition(commands=(Inside(inside),))

    nesting = Callback("nesting", where, command)
    alone = signalled(signal.SIGTERM, NEVER)
    final = run(begun(alone), [watching(alone)])
    left = run(begun(outer), [watching(outer), nesting])
    assert "SIGTERM" in left.reason or "SIGTERM" in str(left.notes)
    assert left.phase is (Phase.DONE if where in (Phase.TRAIN_END, Phase.TEARDOWN) else Phase.SUSPENDED)
    for state, work in ((ended[0], inner), (left, outer)):
        after = state if state.phase is Phase.DONE else run(state, [watching(work)])
        assert same_end(_without_nesting(after), final)


def _without_nesting(state: State) -> State:
    return attrs.evolve(state, memory={name: value for name, value in state.memory.items() if name != "nesting"})


@pytest.mark.parametrize("where", [phase for phase in CONSULTED if phase is not Phase.SUSPEND])
def test_a_signal_inside_of_each_phase(where: Phase) -> None:
    """At each phase of the outer training; at every seventh moment of the inner one, and at its last ones."""
    with as_in_a_shell():
        for moment in {*moments()[::7], *moments()[-3:]}:
            nested_is_the_same(where, moment)


# -------------------------------------------------------------------------------------- a real model


def real_is_the_same(fault: Fault, window: int, number: signal.Signals, *, on_disk: bool) -> None:
    """Left by a signal within a part or an operation, and gone on with: here, or from the disk in a new workload.

    Raises:
        AssertionError: a bit differs at the end.
    """
    work = workload(fault, lambda: signal.raise_signal(number))
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [*library(window), checkpoint(folder)]
        state = run(start(work, epochs=EPOCHS, seed=0), callbacks)
        if state.phase is Phase.SUSPENDED and on_disk:
            work = workload()
            state = restore(folder, work)
        if state.phase is Phase.SUSPENDED:
            state = run(state, callbacks)
    assert state.phase is Phase.DONE
    assert end_of(work, attrs.evolve(state, reason="")) == undisturbed(window)


OPERATIONS = [fault for fault in faults() if not isinstance(fault.what, Phase)]


@given(st.sampled_from(OPERATIONS), st.sampled_from([0, 1, 2]), st.sampled_from(signals.SIGNALS), st.booleans())
def test_a_signal_within_any_part(fault: Fault, window: int, number: signal.Signals, on_disk: bool) -> None:
    """The data, the model, the loss, the gradient, the optimizer, a metric, any operation."""
    with as_in_a_shell():
        real_is_the_same(fault, window, number, on_disk=on_disk)


# ----------------------------------------------------------------------------------- the laws have teeth


def _stops(state: State, name: str) -> State:
    return attrs.evolve(interrupted(state, name), flags=state.flags | Flag.STOP_TRAINING)


def _raises(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _nothing(*_: object, **__: object) -> None: ...


LAST, WITHIN = -2, 60
BUGS: dict[str, tuple[Any, str, Callable[..., Any], Callable[[], object]]] = {
    "a signal ends the training": (
        cursor,
        "interrupted",
        _stops,
        lambda: left_at_is_the_same(signal.SIGTERM, WITHIN),
    ),
    "a signal raises where it comes": (
        signals.Interrupts,
        "note",
        _raises,
        lambda: left_at_is_the_same(signal.SIGINT, WITHIN),
    ),
    "a late signal takes the state away": (
        signals,
        "_deliver",
        _raises,
        lambda: left_at_is_the_same(signal.SIGTERM, moments()[LAST]),
    ),
    "a late signal is not said": (
        interpreter,
        "with_late_signal",
        lambda state, name: state,
        lambda: left_at_is_the_same(signal.SIGTERM, moments()[LAST]),
    ),
    "what an inner run acts on stays there": (
        cursor,
        "hand_on",
        _nothing,
        lambda: nested_is_the_same(Phase.BATCH_END, WITHIN),
    ),
    "generators are not put back": (
        generators.Generators,
        "put_back",
        _nothing,
        lambda: real_is_the_same(Fault("model", 6), 1, signal.SIGTERM, on_disk=True),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these machines loses something, and the law that it breaks holds for the right one."""
    owner, name, broken, law = BUGS[bug]
    with as_in_a_shell():
        law()
        monkeypatch.setattr(owner, name, broken)
        with pytest.raises((AssertionError, KeyboardInterrupt)):
            law()
