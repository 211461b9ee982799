"""Trainings on several simulated ranks."""

from __future__ import annotations

from typing import Any

import pytest

from fsm_train import Callback, Flag, Operation, Phase, Scripted, State, Transition, WorkloadError, on, run, start
from fsm_train.testing import (
    DeadlockError,
    Moment,
    PerRank,
    RankEnds,
    RanksDifferError,
    SimulatedError,
    Trace,
    at,
    simulate,
    train_ranks,
)
from fsm_train.testing.rank_threads import RankThreads
from fsm_train.testing.ranks import MOMENTS, Join
from fsm_train.worlds.disagreement import PeerError


def stopping(rank: int) -> Callback[None]:
    """Stops the second rank after its first batch, and no other one."""

    @on(Phase.BATCH_END)
    def stopping(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING, reason="mine alone") if rank == 1 else None

    return stopping


# ------------------------------------------------------------------------------------- what is given


def test_settings_of_each_rank() -> None:
    """Any setting may be another one on each rank: a number, a sequence, a function, callbacks, a trace."""
    traces = [Trace(), Trace()]
    final = simulate(
        PerRank([], ()),
        ranks=2,
        epochs=2,
        batches=PerRank(2, [3, 3]),
        loss=PerRank(1.0, lambda state: 3.0),
        trace=PerRank(*traces),
    )
    assert (final.step, final.metrics["train_loss"]) == (4, 2.0)
    assert traces[0].phases == traces[1].phases
    assert traces[0].operations == traces[1].operations


def test_callbacks_may_come_from_an_iterator() -> None:
    """All ranks have them, and not only the first one."""
    assert simulate(iter([stopping(1)]), ranks=3, batches=5).reason == "stopping: mine alone"


def test_number_of_epochs_follows_the_metrics_of_each_rank() -> None:
    """As without ranks. Where they differ, the ranks have different plans."""
    assert simulate([], ranks=2, valid_loss=PerRank([1.0, 2.0], [3.0, 4.0])).epoch == 2
    with pytest.raises(WorkloadError, match="plan: .*epochs"):
        simulate([], ranks=2, valid_loss=PerRank([1.0, 2.0], [3.0]))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"ranks": 3, "batches": PerRank(1, 2)}, ValueError, r"batches=PerRank\(1, 2\): give one for each of the 3"),
        ({"ranks": 0}, ValueError, "ranks=0: give a whole number from 1"),
        ({"ranks": True}, ValueError, "ranks=True: give a whole number from 1"),
        ({"batches": PerRank(1, 2)}, TypeError, "batches=PerRank"),
        ({"interrupt_at": Moment("step")}, TypeError, "a Moment is for trainings on ranks; give ranks= too"),
        ({"rank": 2}, TypeError, "did you mean ranks"),
    ],
)
def test_what_makes_no_sense_is_refused(given: Any, error: type[Exception], text: str) -> None:
    """With what to write."""
    with pytest.raises(error, match=text):
        simulate([], **given)


# ------------------------------------------------------------------------------------------- moments

NEVER_HERE = {"reposition", "discard", "abandon", "finish", "measure_valid", "turn"}
"""Not before a first suspension, or after it can be acted on; and ranks have no turns."""


@pytest.mark.parametrize("of", sorted(MOMENTS - NEVER_HERE))
@pytest.mark.parametrize("after", [False, True])
def test_signal_before_or_after_anything(of: str, after: bool) -> None:
    """To one rank, it suspends all of them, and no rank waits for another."""

    @on(Phase.STEP_BEGIN, needs={"loss"})
    def asks(state: State) -> Transition:
        from fsm_train.commands import ClipGradNorm

        return Transition(hyper={"lr": 0.1}, commands=(ClipGradNorm(1.0),))

    moment = Moment(of, after=after)
    final = simulate([asks], ranks=2, epochs=3, batches=3, valid_loss=1.0, interrupt_at=PerRank(None, moment))

    assert final.phase is Phase.SUSPENDED


def test_moment_is_of_an_operation_by_name_or_not() -> None:
    """An `Operation` will do, and None counts whatever comes."""
    by_name, by_value = Moment("step", times=2), Moment(Operation.STEP, times=2)
    ends = [simulate([], ranks=2, batches=9, interrupt_at=PerRank(moment, None)) for moment in (by_name, by_value)]
    assert [state.batch for state in ends] == [3, 3]

    assert simulate([], ranks=2, batches=9, interrupt_at=PerRank(Moment(times=20), None)).phase is Phase.SUSPENDED


def test_moment_that_never_comes_is_no_silent_one() -> None:
    """A test that means to interrupt does."""
    with pytest.raises(
        AssertionError, match=r"interrupt_at=Moment\(of='step', times=9.* never came: .* after 1 batches"
    ):
        simulate([], ranks=2, interrupt_at=PerRank(None, Moment("step", times=9)))


@pytest.mark.parametrize(
    ("given", "text"),
    [({"of": "stepp"}, "of='stepp': there are abandon, .*step"), ({"times": 0}, "times=0: give a whole number from 1")],
)
def test_moment_is_checked(given: Any, text: str) -> None:
    """Where it is written."""
    with pytest.raises(ValueError, match=text):
        Moment(**given)


def test_phases_still_say_when() -> None:
    """`interrupt_at`, `fail_at` and `until` take what they take without ranks, on all of them or on one."""
    assert simulate([], ranks=2, batches=9, interrupt_at=Phase.STEP_END).phase is Phase.SUSPENDED
    assert simulate([], ranks=2, batches=9, until=lambda state: state.step == 4).step == 4
    with pytest.raises(SimulatedError, match="as planned, by backward"):
        simulate([], ranks=2, fail_at=PerRank(None, Operation.BACKWARD))
    with pytest.raises(SimulatedError, match="as planned, at epoch_end"):
        simulate([], ranks=2, fail_at=Phase.EPOCH_END)


# ---------------------------------------------------------------------------------------- how all end


def test_same_training_takes_the_same_course() -> None:
    """One rank runs at a time: what happens, in which order, does not depend on the machine."""

    def course() -> list[str]:
        seen: list[str] = []

        def train(rank: int, join: Join) -> State:
            @on(Phase.LOSS_END, Phase.EPOCH_END, needs={"loss"})
            def note(state: State) -> None:
                seen.append(f"{rank} {state.phase.value} {state.batch}")

            return run(start(join(Scripted(batches=3 + rank)), epochs=1), [note])

        train_ranks(3, train)
        return seen

    assert course() == course()
    assert len(course()) == 3 * (3 + 1)


def test_deadlock_is_a_sentence() -> None:
    """It says where each rank waits, or that it has ended; no time-out is waited for."""

    def train(rank: int, join: Join) -> State:
        work = join(Scripted(batches=4 - rank), agreed=rank < 2)
        return run(start(work, epochs=1))

    ends = train_ranks(3, train)
    assert [type(error) for error in ends.errors] == [DeadlockError] * 3
    assert str(ends.errors[0]) == (
        "the ranks wait for each other: rank 0 waits with where its workload is made; rank 1 waits with where its "
        "workload is made; rank 2 waits in backward, with batch 1 of its pass 1"
    )


def test_rank_that_ends_before_the_others_is_named() -> None:
    """What it raised, if it raised something, comes before what the others waited for."""

    def train(rank: int, join: Join) -> State:
        work = join(Scripted())
        if rank == 2:
            raise OSError("no such file")
        return run(start(work, epochs=1))

    ends = train_ranks(3, train)
    assert "rank 2 has ended" in str(ends.errors[0])
    with pytest.raises(OSError, match="no such file") as raised:
        ends.state  # noqa: B018
    assert [note.split(":")[0] for note in raised.value.__notes__] == [
        "Rank 0 ended with DeadlockError",
        "Rank 1 ended with DeadlockError",
        "Rank 2 ended with OSError",
    ]


def test_ranks_that_end_in_different_states_are_told_apart() -> None:
    """Field by field, each beside the first rank."""
    states = [at(Phase.DONE, step=step, epoch=2) for step in (3, 4, 3)]
    ends = RankEnds(tuple(states))

    assert ends.states == tuple(states)
    assert ends.errors == ()
    with pytest.raises(RanksDifferError, match="Rank 1, other than rank 0: step: 3 != 4"):
        ends.state  # noqa: B018


def test_error_that_all_ranks_raise_is_raised_as_it_is() -> None:
    """There is nothing to tell of the others."""
    error, equal = ValueError("planted"), ValueError("planted")
    with pytest.raises(ValueError, match="planted") as raised:
        RankEnds((error, equal)).state  # noqa: B018

    assert raised.value is error
    assert not hasattr(error, "__notes__")


def test_some_states_and_an_error_are_no_common_end() -> None:
    """The note shows how the others ended."""
    with pytest.raises(PeerError) as raised:
        RankEnds((at(Phase.DONE, step=3), PeerError.of(0, "OSError"))).state  # noqa: B018

    assert raised.value.__notes__[0].startswith("Rank 0 ended with State(done: ")


def test_callback_that_decides_for_its_rank_alone_is_found() -> None:
    """In a test of one's own, with callbacks for each rank."""
    with pytest.raises(WorkloadError, match="the ranks are at different places: at a look for signals .* on rank 0"):
        simulate(PerRank([stopping(0)], [stopping(1)]), ranks=2, batches=5)


def test_first_failure_is_the_one_that_is_told() -> None:
    """Of two ranks that fail, the others hear of the first."""
    threads = RankThreads(3)

    def work(rank: int) -> object:
        if rank < 2:
            threads.fail(rank, f"broken {rank}")
            return None
        return threads.meet(rank, "exchange", rank, "here")

    assert str(threads.run(work)[2]) == "rank 0 failed, and this rank ended with it: broken 0"
