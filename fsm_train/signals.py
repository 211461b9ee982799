"""SIGTERM and Ctrl-C, noted as a request to suspend the training.

Handlers are touched only in the main thread, and always put back. A process that is forked meanwhile has those from
before: whoever ends it with SIGTERM does not wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .core.under_way import hand_on
from .core.workload import Workload

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The signals of one call of `run`.

    Attributes:
        workload: of the call; a signal is noted in its `interrupt`.
        before: the handlers of the program, or of the call that this one is inside of.
        pressed: whether Ctrl-C came once already, to this call or to one inside of it.
        too_late: the name of a signal that the machine could not act on any more; "" if there was none.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int] = {}
        self.pressed = False
        self.too_late = ""

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        if number == signal.SIGINT:
            if any(call.pressed for call in _calls):
                raise KeyboardInterrupt
            for call in _calls:
                call.pressed = True
        self.workload.interrupt = signal.Signals(number).name


_calls: list[Interrupts] = []
"""The calls of `run` that note signals, in the main thread: each is inside of the one before it."""


def noted_outside() -> bool:
    """Whether a call of `run` is under way that will act on a signal: what is inside of it need not."""
    return bool(_calls)


@contextlib.contextmanager
def interrupts(workload: Workload) -> Iterator[Interrupts]:
    """Note SIGTERM and the first SIGINT in `workload.interrupt`; a second SIGINT is KeyboardInterrupt, at once.

    A signal that was ignored before (as under nohup) stays ignored. One that comes too late for the
    machine to act on it is `too_late`, so that the last state is not lost with it. It is delivered again
    to a handler of the program's own, and to any handler if the run raised. Inside of another call of `run`
    it is handed on to that one instead, and what was asked of that one before is asked of this one too.
    """
    signals = Interrupts(workload)
    workload.interrupt = None
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    signals.before = before = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) is not None and handler is not signal.SIG_IGN
    }
    raised = True
    workload.interrupt = next((call.workload.interrupt for call in _calls if call.workload.interrupt), None)
    _calls.append(signals)
    try:
        for number in before:
            signal.signal(number, signals.note)
        yield signals
        raised = False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if signals in _calls:  # and this process was not forked meanwhile
            _calls.remove(signals)
        if late := workload.interrupt:
            workload.interrupt = None
            if not raised:
                signals.too_late = late
            _deliver(late, before.get(signal.Signals[late]), workload, raised=raised)


def _deliver(name: str, handler: object, workload: Workload, *, raised: bool) -> None:
    """Deliver a signal that the machine did not act on, to whoever would have had it without this call of `run`."""
    hand_on(workload, name)
    if isinstance(getattr(handler, "__self__", None), Interrupts):
        return
    if raised or handler not in (signal.SIG_DFL, signal.default_int_handler):
        signal.raise_signal(signal.Signals[name])


@contextlib.contextmanager
def block_sigint_for_children() -> Iterator[None]:
    """Processes that begin in here do not get Ctrl-C, which a terminal sends to the whole process group.

    The training continues to the end of the batch, and its loader's workers have to live as long. SIGTERM
    is left to them: it is how Python ends workers that are still there when it exits itself.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------------------------ processes that are forked

_masks = threading.local()


def _hold_back() -> None:
    """Before a fork: a signal to the new process waits until that has its handlers."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _calls else None


def _let_through() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _leave_to_parent() -> None:
    """In a process that was forked: it is inside of no call of `run`, and a signal does what it did before."""
    for call in reversed(_calls):
        for number, handler in call.before.items():
            if getattr(signal.getsignal(number), "__self__", None) is call:
                signal.signal(number, handler)
    _calls.clear()
    _let_through()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows forks nothing
    os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_leave_to_parent)
