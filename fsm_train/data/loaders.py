"""DataLoaders of torch: their settings, and workers that outlive the signals that ask a training to leave."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from ..signals import block_sigint_for_children


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
    if workers_there(loader):
        return iter(loader)  # the same as before
    leaving = multiprocessing.RawValue("b", 0)
    with block_sigint_for_children(), _spared_sigterm(loader, leaving):
        workers = iter(loader)
    # Once nobody needs the workers, and when Python exits: finalizers with a priority are called before it ends them.
    multiprocessing.util.Finalize(workers, setattr, (leaving, "value", 1), exitpriority=100)
    return workers


def workers_there(loader: object) -> bool | None:
    """Whether workers that stay from pass to pass are there; None for a loader that has no such workers."""
    return loader._iterator is not None if isinstance(loader, DataLoader) and loader.persistent_workers else None


def let_workers_be(loader: object, there: bool | None) -> None:
    """Have workers that stay be there or not, as `workers_there` said.

    It matters beyond their own draws: a loader draws a seed for its workers when they begin, so one whose
    workers stay does so in its first pass only. The generators are left anywhere.
    """
    if isinstance(loader, DataLoader) and None is not there is not workers_there(loader):
        loader._iterator = None
        if there:
            with ordered_by(loader, ()):
                begun(loader)


@contextlib.contextmanager
def ordered_by(loader: DataLoader[Any], order: Iterable[Any]) -> Iterator[None]:
    """A pass that begins in here takes its batches, or samples, from this order and not from the loader's sampler."""
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    own = getattr(loader, name)
    # A loader lets nobody set its sampler, and one whose workers stay goes on with the iterator that they began with.
    object.__setattr__(loader, name, order)
    if loader._iterator is not None:
        loader._iterator._index_sampler = order
    try:
        yield
    finally:
        object.__setattr__(loader, name, own)
        if loader._iterator is not None:
            loader._iterator._index_sampler = own


@contextlib.contextmanager
def _spared_sigterm(loader: DataLoader[Any], leaving: Any) -> Iterator[None]:
    """Workers that begin in here are `_Spared`. Until they are, the signal waits for them, and then for us."""
    init = loader.worker_init_fn
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    loader.worker_init_fn = _Spared(init, leaving)
    try:
        yield
    finally:
        loader.worker_init_fn = init
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Spared:
    """What a worker does first, and then what it was to do first.

    SIGTERM is also how torch and Python end workers that are left when nobody needs them, and wait for them:
    so it is no longer ignored from then on, or once the process that they work for is gone. It is not
    blocked either, which programs that the dataset starts would inherit.
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
