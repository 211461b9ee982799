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


@contextlib.contextmanager
def interrupts(workload: Workload) -> Iterator[None]:
    """Note SIGTERM and the first SIGINT in `workload.interrupt`; a second SIGINT is KeyboardInterrupt.

    A signal that was ignored before (as under nohup) stays ignored. One that came too late for the
    machine to act on it is delivered again when the handlers are back, so that it is never lost.
    """
    workload.interrupt = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and workload.interrupt == "SIGINT":
            raise KeyboardInterrupt
        workload.interrupt = signal.Signals(number).name

    before = {
        number: handler for number in SIGNALS if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    try:
        for number in before:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if workload.interrupt is not None:
        signal.raise_signal(signal.Signals[workload.interrupt])


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
