"""A signal that comes while one run is inside of another: all of them leave, and all of them can go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fsm_train import Command, Phase, Scripted, Sink, State, Supervised, Transition, on, replay, run, start
from fsm_train.ablation import ablate
from fsm_train.callbacks import early_stopping
from fsm_train.core.under_way import hand_on
from fsm_train.interpreter import iterate
from fsm_train.lr_finder import find_lr
from fsm_train.signals import SIGNALS

BOTH = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@attrs.frozen
class Inside(Command):
    """Do what the workload has to do inside of its run."""


class Nesting(Scripted):
    """A workload whose command calls `inside`."""

    def __init__(self, inside: Callable[[], object], **script: Any) -> None:
        super().__init__(**script)
        self.inside = inside

    def carry_out(self, command: Command, state: State) -> None:
        self.inside()


@on(Phase.BATCH_END)
def once(state: State) -> Transition | None:
    """Asks for it in the middle of the second epoch."""
    return Transition(commands=(Inside(),)) if state.iteration == 5 else None


def nested(inside: Callable[[], object]) -> State:
    return start(Nesting(inside, batches=3, valid_loss=1.0), epochs=3)


def kill(number: signal.Signals) -> Callable[[State], float]:
    """A loss that sends this process a signal, in the second batch."""

    def loss(state: State) -> float:
        if state.iteration == 1:
            os.kill(os.getpid(), number)
        return 1.0

    return loss


def check_left(final: State, name: str) -> None:
    """It left at the end of the batch in which the signal came, says why, and goes on to where it would have ended."""
    assert (final.phase, final.iteration, final.reason) == (Phase.SUSPENDED, 5, f"interrupted by {name}")
    after = run(final)
    undisturbed = run(nested(lambda: None), [once])
    assert attrs.evolve(after, memory={}) == attrs.evolve(undisturbed, memory={})
    assert after.notes == ()


@BOTH
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_run_around_it_leaves_too(number: signal.Signals, depth: int) -> None:
    """However deep: the innermost acts first, and each around it at the end of its own batch."""
    ended: list[State] = []

    def innermost() -> None:
        ended.append(run(start(Scripted(loss=kill(number)), epochs=2)))

    inside = innermost
    for _ in range(depth - 1):
        inside = lambda within=inside: ended.append(run(nested(within), [once]))
    ended.append(run(nested(inside), [once]))

    assert (ended[0].phase, ended[0].iteration) == (Phase.SUSPENDED, 2)
    assert len(ended) == depth + 1
    for state in ended[1:]:
        assert (state.phase, state.iteration, state.reason) == (Phase.SUSPENDED, 5, f"interrupted by {number.name}")
    check_left(ended[-1], number.name)


@BOTH
@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_an_inner_run_that_raises_hands_on_what_it_could_not_act_on(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    """The program catches what it raised; the signal is not caught with it."""

    def loss(state: State) -> float:
        os.kill(os.getpid(), number)
        raise raised

    def inside() -> None:
        with pytest.raises(raised):
            run(start(Scripted(loss=loss), epochs=1))

    check_left(run(nested(inside), [once]), number.name)


@BOTH
@pytest.mark.parametrize("phase", [Phase.TRAIN_END, Phase.TEARDOWN])
def test_an_inner_run_that_is_ending_hands_it_on(number: signal.Signals, phase: Phase) -> None:
    """It is too late for the inner one, which says so, and in time for the one around it."""
    ended: list[State] = []

    @on(phase)
    def late(state: State) -> None:
        os.kill(os.getpid(), number)

    final = run(nested(lambda: ended.append(run(start(Scripted(), epochs=1), [late]))), [once])

    assert ended[0].phase is Phase.DONE
    assert ended[0].notes == (f"{number.name} came when this call of run was ending, too late to change anything",)
    check_left(final, number.name)


@BOTH
def test_what_was_asked_before_counts_inside_too(number: signal.Signals) -> None:
    """An inner run that begins after the signal does not keep the process for as long as it trains."""
    ended: list[State] = []

    def inside() -> None:
        os.kill(os.getpid(), number)
        ended.append(run(start(Scripted(), epochs=1000)))

    final = run(nested(inside), [once])

    assert (ended[0].phase, ended[0].iteration, ended[0].reason) == (Phase.SUSPENDED, 1, final.reason)
    check_left(final, number.name)


@pytest.mark.parametrize("within", [True, False])
def test_a_second_ctrl_c_counts_wherever_it_comes(within: bool) -> None:
    """In the inner run, or in the one around it when the inner one has left: KeyboardInterrupt, from both."""
    handler = signal.getsignal(signal.SIGINT)

    def inside() -> None:
        run(start(Scripted(loss=kill(signal.SIGINT)), epochs=2))
        if within:
            run(start(Scripted(loss=kill(signal.SIGINT), batches=1), epochs=2))
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(nested(inside), [once])
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_of_the_program_between_two_runs_hears_of_it() -> None:
    """One that a command puts in place has the signals that come too late for the run inside of it."""
    heard: list[int] = []

    @on(Phase.TRAIN_END)
    def late(state: State) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def inside() -> None:
        before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        run(start(Scripted(), epochs=1), [late])
        signal.signal(signal.SIGTERM, before)

    check_left(run(nested(inside), [once]), "SIGTERM")
    assert heard == [signal.SIGTERM]


# ------------------------------------------------------------------------------------- iterate


def interrupted_loop() -> State:
    """The last state of a loop over `iterate` that is interrupted as a handler of the program's own would do it."""
    work = Scripted()
    for state in iterate(start(work, epochs=2), at=[Phase.BATCH_BEGIN]):
        if state.phase is Phase.BATCH_BEGIN and state.iteration == 1:
            work.interrupt = "SIGUSR1"
    return state


def test_a_loop_within_a_loop() -> None:
    """Without any signal: what the inner loop acts on, the outer one acts on too."""
    ended: list[State] = []
    *_, final = iterate(nested(lambda: ended.append(interrupted_loop())), [once])

    assert (ended[0].phase, ended[0].iteration) == (Phase.SUSPENDED, 2)
    check_left(final, "SIGUSR1")


@BOTH
def test_a_run_in_the_body_of_a_loop(number: signal.Signals) -> None:
    """The loop waits for it, so that it leaves too."""
    for state in iterate(nested(lambda: None), [once], at=[Phase.BATCH_END]):
        if state.phase is Phase.BATCH_END and state.iteration == 5:
            assert run(start(Scripted(loss=kill(number)), epochs=2)).phase is Phase.SUSPENDED
    check_left(state, number.name)


@BOTH
def test_a_loop_within_a_run_leaves_signals_to_it(number: signal.Signals) -> None:
    """`iterate` touches no handler: the loop goes on as its body wants, and the run leaves."""
    ended: list[State] = []
    final = run(
        nested(lambda: ended.extend([[*iterate(start(Scripted(loss=kill(number)), epochs=2))][-1]])),
        [once],
    )

    assert ended[0].phase is Phase.DONE
    check_left(final, number.name)


def test_a_loop_says_what_came_too_late_and_forgets_it() -> None:
    """As a run does, and the next loop over this workload is not asked to leave."""
    work = Scripted()
    for state in iterate(start(work, epochs=1), at=[Phase.TRAIN_END]):
        if state.phase is Phase.TRAIN_END:
            work.interrupt = "SIGUSR1"
    *_, again = iterate(start(work, epochs=1))

    assert state.notes == ("SIGUSR1 came when this call of run was ending, too late to change anything",)
    assert (again.phase, again.notes) == (Phase.DONE, ())


def test_a_loop_that_is_refused_takes_nothing_from_the_one_under_way() -> None:
    """What was asked of the first is still asked of it."""
    work = Scripted()
    loop = iterate(start(work, epochs=2), at=[Phase.BATCH_BEGIN])
    next(loop)
    work.interrupt = "SIGUSR1"
    with pytest.raises(Exception, match="a run of this workload is under way"):
        next(iterate(start(work, epochs=1)))

    assert [*loop][-1].phase is Phase.SUSPENDED


# --------------------------------------------------------------------------- other ways to be inside


class RunsInside(Sink):
    """A sink that trains something in the middle of the second epoch."""

    at = (Phase.BATCH_END,)

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def see(self, state: State, answers: object) -> None:
        if state.iteration == 5:
            run(start(Scripted(loss=kill(self.number)), epochs=2))


@BOTH
def test_in_a_sink(number: signal.Signals) -> None:
    """A sink influences nothing, but the signal was for the process."""
    final = run(nested(lambda: None), [once], sinks=[RunsInside(number)])
    check_left(final, number.name)


@BOTH
def test_in_a_metric(number: signal.Signals) -> None:
    """A metric that trains a probe, in a validation: the outer run leaves there, and validates again."""
    probes: list[State] = []

    def probe(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not model.training:
            probes.append(run(start(Scripted(loss=kill(number) if len(probes) == 2 else 1.0), epochs=2)))
        return output.mean()

    model = nn.Linear(2, 1)
    batches = [(torch.ones(2, 2), torch.zeros(2, 1))] * 2
    work = Supervised(
        model, torch.optim.SGD(model.parameters(), 0.1), nn.MSELoss(), batches, batches, metrics={"probe": probe}
    )
    suspended = run(start(work, epochs=3))
    final = run(suspended)

    assert (suspended.phase, suspended.iteration, suspended.valid_batch) == (Phase.SUSPENDED, 4, 1)
    assert [state.phase for state in probes[:3]] == [Phase.DONE, Phase.DONE, Phase.SUSPENDED]
    assert (final.phase, len(final.history)) == (Phase.DONE, 3)


@BOTH
def test_find_lr_and_ablate_inside_of_a_run_end_first(number: signal.Signals) -> None:
    """Interrupted, they would have no result and the command would be left half done. The run around them leaves."""
    found: list[object] = []

    def inside() -> None:
        found.append(find_lr(start(Scripted(loss=kill(number)), epochs=1), steps=5))
        make = lambda seed: start(Scripted(loss=kill(number), valid_loss=1.0), epochs=1, seed=seed)
        if number is signal.SIGTERM:
            found.append(ablate(make, [early_stopping()], progress=False))

    final = run(nested(inside), [once])

    assert len(found) == (2 if number is signal.SIGTERM else 1)
    check_left(final, number.name)


@BOTH
def test_find_lr_alone_is_interrupted(number: signal.Signals) -> None:
    """Where no run is around it, it has no one to hand the signal to."""
    with pytest.raises(KeyboardInterrupt, match=number.name):
        find_lr(start(Scripted(loss=kill(number)), epochs=1), steps=5)


@BOTH
def test_in_another_thread(number: signal.Signals) -> None:
    """The run in the thread leaves signals alone, and the one that waits for it leaves."""
    ended: list[State] = []

    def inside() -> None:
        thread = threading.Thread(target=lambda: ended.append(run(start(Scripted(loss=kill(number)), epochs=2))))
        thread.start()
        thread.join()

    final = run(nested(inside), [once])

    assert ended[0].phase is Phase.DONE
    check_left(final, number.name)


def test_a_thread_hands_nothing_to_the_runs_of_another() -> None:
    """Only what waits for it is around it."""

    def inside() -> None:
        thread = threading.Thread(target=interrupted_loop)
        thread.start()
        thread.join()

    assert run(nested(inside), [once]).phase is Phase.DONE


def test_a_recorded_signal_is_none_for_this_process(tmp_path: Path) -> None:
    """A replay inside of a run acts on what is in the log, and the run around it trains on."""
    path = tmp_path / "run.jsonl"
    assert run(start(Scripted(loss=kill(signal.SIGTERM)), epochs=2), log=path).phase is Phase.SUSPENDED
    replays: list[bool] = []

    final = run(nested(lambda: replays.append(replay(path).ok)), [once])

    assert replays == [True]
    assert final.phase is Phase.DONE


def test_the_latest_signal_does_not_replace_the_first() -> None:
    """What a run around was asked already is its reason; a run that began later is none around it."""
    first, second = Scripted(), Scripted()
    loop = iterate(start(first, epochs=1), at=[Phase.BATCH_BEGIN])
    later = iterate(start(second, epochs=1), at=[Phase.BATCH_BEGIN])
    next(loop)
    next(later)
    first.interrupt = "SIGUSR1"
    hand_on(second, "SIGTERM")
    hand_on(first, "SIGTERM")

    assert (first.interrupt, second.interrupt) == ("SIGUSR1", None)
    loop.close()  # type: ignore[attr-defined]
    later.close()  # type: ignore[attr-defined]
