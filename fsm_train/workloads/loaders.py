"""DataLoaders of torch: their settings, and workers that outlive the signals that ask a training to leave."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from ..signals import children_spared


def settings_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """How a loader reads, and not what: for one like it over other samples, or in another order."""
    return {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "prefetch_factor": loader.prefetch_factor,
    }


def begun(loader: Iterable[Any]) -> Iterator[Any]:
    """A new pass over the loader, whose workers outlive a signal that asks the training to leave.

    Ctrl-C, and many a scheduler's SIGTERM, go to the whole process group. The training goes on to the
    end of the batch, and a worker that is gone before would be an error in the middle of it.
    """
    if not (isinstance(loader, DataLoader) and loader.num_workers > 0 and hasattr(signal, "pthread_sigmask")):
        return iter(loader)
    with children_spared(), _spared_sigterm(loader):
        return iter(loader)


@contextlib.contextmanager
def _spared_sigterm(loader: DataLoader[Any]) -> Iterator[None]:
    """Workers that begin in here are `_Spared`. Until they are, the signal waits for them, and then for us."""
    init = loader.worker_init_fn
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    loader.worker_init_fn = _Spared(init, _leaving(os.getpid()))
    try:
        yield
    finally:
        loader.worker_init_fn = init
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Spared:
    """What a worker does first, and then what it was to do first.

    SIGTERM is also how Python ends the workers that are left when it exits itself, and waits for them:
    so it is no longer ignored once the process that they work for is leaving, or gone. It is not blocked
    either, which programs that the dataset starts would inherit.
    """

    def __init__(self, init: Callable[[int], None] | None, leaving: Any) -> None:
        self.init = init
        self.leaving = leaving

    def __call__(self, worker: int) -> None:
        parent = os.getppid()

        def asked(number: int, frame: FrameType | None) -> None:
            if self.leaving.value or os.getppid() != parent:
                os._exit(0)  # as torch's own handler does: a worker that a signal ends is an error to it

        signal.signal(signal.SIGTERM, asked)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        if self.init is not None:
            self.init(worker)


@functools.cache
def _leaving(process: int) -> Any:
    """What all workers of this process can read, and is true from when it begins to exit."""
    leaving = multiprocessing.RawValue("b", 0)
    # Of the finalizers, those with a priority are called before workers are ended.
    multiprocessing.util.Finalize(None, setattr, (leaving, "value", 1), exitpriority=100)
    return leaving
