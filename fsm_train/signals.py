"""SIGTERM and Ctrl-C, noted as a request to suspend the training.

Handlers are touched only in the main thread, and always put back.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .core.under_way import hand_on
from .core.workload import Workload

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The signals of one call of `run`.

    Attributes:
        workload: of the call; a signal is noted in its `interrupt`.
        pressed: whether Ctrl-C came once already, to this call or to one inside of it.
        too_late: the name of a signal that the machine could not act on any more; "" if there was none.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
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
    before = {
        number: handler for number in SIGNALS if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
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
