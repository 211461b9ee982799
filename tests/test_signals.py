"""SIGTERM and Ctrl-C: a suspended state, never a lost one, and handlers as they were."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from fsm_train import Phase, Scripted, State, run, signals, start
from fsm_train.signals import SIGNALS, block_sigint_for_children, interrupts


def _at(iteration: int, *signals: signal.Signals) -> Any:
    """A loss that sends this process signals in the middle of a batch."""

    def loss(state: State) -> float:
        if state.iteration == iteration:
            for number in signals:
                os.kill(os.getpid(), number)
        return 1.0

    return loss


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_suspends_at_the_end_of_the_batch(number: signal.Signals) -> None:
    """The batch is finished, the state says which signal it was, and can be run again in this process."""
    handler = signal.getsignal(number)
    work = Scripted(batches=3, loss=_at(4, number), valid_loss=1.0)

    suspended = run(start(work, epochs=3))
    final = run(suspended)

    assert (suspended.phase, suspended.iteration) == (Phase.SUSPENDED, 5)
    assert suspended.reason == f"interrupted by {number.name}"
    assert (final.phase, final.iteration, final.reason) == (Phase.DONE, 9, "")
    assert signal.getsignal(number) is handler


def test_a_signal_in_validation_suspends_there() -> None:
    """It is noticed within a validation batch; the validation is done anew afterwards."""

    class Validates(Scripted):
        def evaluate(self, state: State | None = None) -> None:
            if not self.commands:
                self.commands.append(None)  # type: ignore[arg-type]
                os.kill(os.getpid(), signal.SIGTERM)

    work = Validates(batches=2, valid_batches=3, valid_loss=1.0)
    suspended = run(start(work, epochs=1))
    final = run(suspended)

    assert (suspended.phase, suspended.valid_batch, suspended.history) == (Phase.SUSPENDED, 1, ())
    assert len(final.history) == 1


def test_a_second_ctrl_c_is_keyboard_interrupt_at_once() -> None:
    """Whoever presses it twice does not wait for the batch; handlers are back all the same."""
    handler = signal.getsignal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(start(Scripted(loss=_at(1, signal.SIGINT, signal.SIGINT)), epochs=1))
    assert signal.getsignal(signal.SIGINT) is handler


def test_handlers_are_back_after_a_failure() -> None:
    """An exception in the training does not leave our handlers behind."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    with pytest.raises(ZeroDivisionError):
        run(start(Scripted(loss=lambda state: 1 / 0), epochs=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_leave_signals_alone() -> None:
    """Outside of the main thread a run trains without touching handlers."""
    handlers: list[Any] = []
    work = Scripted(loss=lambda state: handlers.append(signal.getsignal(signal.SIGTERM)) or 1.0)  # type: ignore[func-returns-value]
    before = signal.getsignal(signal.SIGTERM)

    thread = threading.Thread(target=lambda: run(start(work, epochs=1)))
    thread.start()
    thread.join()

    assert handlers == [before] * 3


def test_ignored_signals_stay_ignored() -> None:
    """Under nohup, say, a signal that is ignored is not made to suspend."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        final = run(start(Scripted(loss=_at(1, signal.SIGTERM)), epochs=1))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert final.phase is Phase.DONE


@pytest.mark.usefixtures("measured")
def test_a_signal_that_comes_too_late_is_not_lost() -> None:
    """The state that the run returns says that it came; the program, which has the state, goes on."""
    code = (
        "import os, signal; from fsm_train import Scripted, run, start\n"
        "class Late(Scripted):\n"
        "    def finish(self, state): os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(*run(start(Late(), epochs=1)).notes)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 0
    assert ended.stdout.startswith("SIGTERM came when this call of run was ending")


def _waits() -> None:
    time.sleep(60)


def test_a_process_that_is_forked_ends_at_a_signal() -> None:
    """As it would without the run, also if it comes at once: whoever ends it waits for it, as a pool does."""
    statuses: list[int | None] = []

    def loss(state: State) -> float:
        process = multiprocessing.get_context("fork").Process(target=_waits)
        process.start()
        process.terminate()
        process.join(50)
        statuses.append(process.exitcode)
        process.kill()
        return 1.0

    inner = Scripted(loss=loss)
    final = run(start(Scripted(loss=lambda state: run(start(inner, epochs=1)).step * 1.0), epochs=1))

    assert (final.phase, final.notes) == (Phase.DONE, ())
    assert statuses == [-signal.SIGTERM] * 9


@pytest.mark.parametrize("theirs", [False, True])
def test_what_a_process_that_is_forked_does_first(theirs: bool) -> None:
    """Handlers are the program's own, no call of `run` is under way, and the same signals are blocked as before."""
    before = [signal.getsignal(number) for number in SIGNALS]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with interrupts(Scripted()), interrupts(Scripted()) as inner:
        if theirs:  # set by the program itself, within the run
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals._hold_back()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked | {*SIGNALS}
        signals._leave_to_parent()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
        assert not signals.noted_outside()
        assert signal.getsignal(signal.SIGINT) == before[0]
        assert signal.getsignal(signal.SIGTERM) == (signal.SIG_IGN if theirs else before[1])
        assert inner.too_late == ""
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_fork_outside_of_a_run_blocks_nothing() -> None:
    """Other programs that only import this package fork as ever."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    signals._hold_back()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
    signals._let_through()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked


@pytest.mark.usefixtures("measured")
def test_a_signal_beside_a_failure_is_delivered_again() -> None:
    """A run that raises has no state to lose, so the program ends as it would have without it."""
    code = (
        "import os, signal; from fsm_train import Scripted, run, start\n"
        "class Late(Scripted):\n"
        "    def finish(self, state): os.kill(os.getpid(), signal.SIGTERM); raise OSError\n"
        "run(start(Late(), epochs=1))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM


def test_who_handled_a_signal_before_hears_of_one_that_came_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own handler is called, after the training, and once."""
    heard: list[int] = []
    work = Scripted()
    monkeypatch.setattr(work, "finish", lambda state: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        final = run(start(work, epochs=1))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert final.phase is Phase.DONE
    assert heard == [signal.SIGTERM]


def test_children_are_spared_ctrl_c_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within, Ctrl-C is blocked, for processes to inherit; where signals cannot be blocked, nothing happens."""

    def blocked() -> set[int]:
        return signal.pthread_sigmask(signal.SIG_BLOCK, [])

    before = blocked()
    with block_sigint_for_children():
        assert blocked() == before | {signal.SIGINT}
    assert blocked() == before

    monkeypatch.delattr(signal, "pthread_sigmask")
    with block_sigint_for_children():
        pass


def test_an_old_interrupt_does_not_linger() -> None:
    """What was asked of the run before is not asked of this one."""
    work = Scripted()
    work.interrupt = "SIGTERM"

    with interrupts(work):
        assert work.interrupt is None
