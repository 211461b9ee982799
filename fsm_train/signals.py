"""SIGTERM and Ctrl-C, noted as a request to suspend the training.

Handlers are touched only in the main thread, and always put back.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .core.workload import Workload

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The signals of one call of `run`.

    Attributes:
        too_late: the name of a signal that the machine could not act on any more; "" if there was none.
    """

    too_late = ""


@contextlib.contextmanager
def interrupts(workload: Workload) -> Iterator[Interrupts]:
    """Note SIGTERM and the first SIGINT in `workload.interrupt`; a second SIGINT is KeyboardInterrupt, at once.

    A signal that was ignored before (as under nohup) stays ignored. One that comes too late for the
    machine to act on it is `too_late`, so that the last state is not lost with it. It is delivered again
    to a handler of the program's own, and to any handler if the run raised.
    """
    signals = Interrupts()
    workload.interrupt = None
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if number == signal.SIGINT:
            if pressed:
                raise KeyboardInterrupt
            pressed = True
        workload.interrupt = signal.Signals(number).name

    before = {
        number: handler for number in SIGNALS if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    raised = True
    try:
        for number in before:
            signal.signal(number, note)
        yield signals
        raised = False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if late := workload.interrupt:
            workload.interrupt = None
            if not raised:
                signals.too_late = late
            if raised or before.get(signal.Signals[late]) not in (signal.SIG_DFL, signal.default_int_handler):
                signal.raise_signal(signal.Signals[late])


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
