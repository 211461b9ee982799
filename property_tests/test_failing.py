"""A failure at any moment: what is whole goes on as the undisturbed training did, or a note says what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest

from fsm_train import CallbackError, WorkloadError, run, start
from fsm_train.core import failing
from fsm_train.core.callback import Callback
from fsm_train.core.failing import Failure, resumes_at, whole_state
from fsm_train.core.phase import CONSULTED, Flag, Operation, Phase
from fsm_train.core.state import State
from fsm_train.core.table import FAILED_RESUMES_AT, RESUMES_AT
from fsm_train.core.transition import Transition
from fsm_train.sinks.base import Sink
from fsm_train.worlds.scripted import Scripted

BATCHES, EPOCHS = 3, 3
NEVER = -1


class BrokenError(Exception):
    """What goes wrong."""


class Breaking(Scripted):
    """A scripted training that raises at a moment, and resumes where a state says.

    Attributes:
        moment: when it raises; operations and consultations are counted together. -1 for never.
        now: how many moments have been.
    """

    def __init__(self, moment: int) -> None:
        super().__init__(
            batches=BATCHES,
            loss=lambda state: state.random("loss").random(),
            train_loss=lambda state: 1.0 / (1 + state.epoch),
            valid_loss=lambda state: 1.0 / (1 + state.step),
            valid_batches=2,
        )
        self.moment = moment
        self.now = 0

    def pass_moment(self) -> None:
        self.now += 1
        if self.now == self.moment:
            raise BrokenError

    def reposition(self, state: State) -> None:
        self._batches_to_come = BATCHES - state.batch
        self._fetched_any = state.batch > 0
        self._losses_added = state.batch


def _operate(operation: Operation) -> Callable[..., object]:
    own = getattr(Breaking, operation.value)

    def operate(self: Breaking, *state: State) -> object:
        self.pass_moment()
        return own(self, *state)

    return operate


for _operation in Operation:
    setattr(Breaking, _operation.value, _operate(_operation))


def callbacks(work: Breaking) -> list[Callback[Any]]:
    """One that counts, sets a rate and lets gradients wait, and one that validates in mid-epoch."""
    outside = {Phase.SETUP, Phase.TEARDOWN, Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END}

    def count(state: State, times: int) -> Transition | None:
        work.pass_moment()
        if state.phase in outside:
            return None
        rate = {"lr": state.hyper["lr"] / 2} if state.phase is Phase.LOSS_END else {}  # type: ignore[operator]
        waits = state.phase is Phase.LOSS_END and state.iteration % 4 < 2
        flags = Flag.SKIP_STEP | Flag.SKIP_ZERO if waits else Flag.NONE
        return Transition(flags=flags, hyper=rate, memory=times + 1)

    def validate(state: State, memory: object) -> Transition | None:
        return Transition(flags=Flag.VALIDATE) if state.batch == 2 else None

    return [Callback("count", CONSULTED, count, memory=0), Callback("validate", Phase.BATCH_BEGIN, validate)]


class SeesFailure(Sink):
    """Keeps the state at TEARDOWN."""

    at = (Phase.TEARDOWN,)
    state: State

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        self.state = state


class SeesBoundaries(Sink):
    """Keeps the states at which a training can be left."""

    at = (Phase.BATCH_END, Phase.VALID_END, Phase.EPOCH_END)

    def __init__(self) -> None:
        self.states: dict[tuple[object, int, bool], State] = {}

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        self.states[state.phase, state.iteration, state.batches_over] = state


def undisturbed() -> tuple[State, int, Mapping[tuple[object, int, bool], State]]:
    """The last state of the training, its moments, and its states where it can be left."""
    work, sees = Breaking(NEVER), SeesBoundaries()
    return run(start(work, epochs=EPOCHS, seed=0), callbacks(work), sinks=[sees]), work.now, sees.states


def failed_at(moment: int) -> tuple[Failure, State | None, tuple[str, ...]]:
    """Where it failed, the state to save, and its notes; None if nothing was whole."""
    work, sees = Breaking(moment), SeesFailure()
    with pytest.raises((BrokenError, CallbackError)):
        run(start(work, epochs=EPOCHS, seed=0), callbacks(work), sinks=[sees])
    failure: Failure = sees.state.failure
    try:
        whole, notes = whole_state(sees.state)
    except WorkloadError:
        return failure, None, ()
    return failure, whole, notes


def gone_on_from(whole: State) -> State:
    """The end of a training that goes on from this state, as `restore` would give it."""
    work = Breaking(NEVER)
    work.set_hyper(whole.hyper)
    state = attrs.evolve(whole, phase=Phase.SUSPENDED, failure=None, error="", workload=work)
    return run(state, callbacks(work))


def comparable(state: State) -> State:
    return attrs.evolve(state, reason="")


KEPT = ("epoch", "iteration", "step", "samples", "pending", "flags", "hyper", "memory")


def failure_is_exact_or_said(moment: int) -> tuple[Failure, bool]:
    """Where it failed, and whether something was said.

    Raises:
        AssertionError: what went on from there differs, and nothing was said.
    """
    final, _, boundaries = undisturbed()
    failure, whole, notes = failed_at(moment)
    if whole is None:
        assert failure.state.iteration == 0 or failure.phase in (Phase.SETUP, Phase.TRAIN_BEGIN)
        return failure, False
    after = gone_on_from(whole)
    assert notes or comparable(after) == comparable(final)
    assert (after.iteration, after.step) == (final.iteration, final.step)
    before = boundaries.get((whole.resume_at, whole.iteration, whole.batches_over))
    if before is not None and not notes and failure.phase is not Phase.STEP_END:  # a leftover step was taken since
        assert [getattr(whole, name) for name in KEPT] == [getattr(before, name) for name in KEPT]
    return failure, bool(notes)


def test_a_failure_at_each_moment() -> None:
    """Exhaustively: within each operation and at each phase. Whatever is said, each batch is there once."""
    _, moments, _ = undisturbed()
    found = [failure_is_exact_or_said(moment) for moment in range(1, moments - 1)]

    said = {(failure.phase, failure.doing) for failure, notes in found if notes}
    exact = {failure.doing for failure, notes in found if not notes}
    assert {Operation.FETCH, Operation.FORWARD, Operation.LOSS, Operation.EVALUATE, Operation.MEASURE} <= exact
    assert {doing for _, doing in said} == {None, Operation.STEP, Operation.ZERO}
    assert {phase for phase, doing in said if doing is None} == {
        *(Phase.STEP_BEGIN, Phase.STEP_END, Phase.BATCH_END, Phase.EPOCH_END),  # the first for a leftover window
        *(Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END, Phase.VALID_END),
    }


def test_each_place_resumes_where_a_training_may_be_left() -> None:
    """Only at places that a suspended training resumes from, so that a checkpoint of either is read alike."""
    assert set(FAILED_RESUMES_AT.values()) == set(RESUMES_AT.values())
    assert {phase: FAILED_RESUMES_AT[phase] for phase in RESUMES_AT if isinstance(phase, Phase)} == RESUMES_AT


# ----------------------------------------------------------------------------------- the law has teeth


def _at_its_phase(failure: Failure) -> Any:
    return RESUMES_AT.get(failure.phase, resumes_at(failure) and Phase.BATCH_END)


BUGS: dict[str, tuple[Any, str, Any]] = {
    "the first batch resumes in its own epoch": (failing, "resumes_at", _at_its_phase),
    "a step half done is not said": (failing, "_PARTLY_STEPPED", frozenset()),
    "a batch whose step was taken is not over": (failing, "ON_ENTRY", {Phase.BATCH_END: lambda at, outcome: None}),
    "gradients of the batch that failed count": (Failure, "pending", property(lambda failure: failure.state.pending)),
    "decisions of the batch that failed stay": (Failure, "in_a_batch", property(lambda failure: False)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these goes on otherwise than the undisturbed training, at some moment, without a word."""
    owner, name, broken = BUGS[bug]
    _, moments, _ = undisturbed()
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, WorkloadError)):
        [failure_is_exact_or_said(moment) for moment in range(1, moments - 1)]
