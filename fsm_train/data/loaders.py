"""DataLoaders of torch: their settings, and workers that survive the signals that interrupt a training."""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing
import multiprocessing.util
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..core.errors import WorkloadError
from ..signals import block_sigint_for_children
from .layers import Combined, loaders_in


def settings_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """The settings of how a loader reads, without its dataset and order: for a similar loader of other samples."""
    return {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "prefetch_factor": loader.prefetch_factor,
    }


def start_pass(loader: Iterable[Any]) -> Iterator[Any]:
    """Start a pass over the loader. Its workers survive SIGINT and SIGTERM until the pass is no longer used.

    A terminal sends Ctrl-C, and many a scheduler SIGTERM, to the whole process group. The training
    continues to the end of the batch, and a worker that ends sooner would be an error in the middle of it.
    """
    if not (isinstance(loader, DataLoader) and loader.num_workers > 0 and hasattr(signal, "pthread_sigmask")):
        return iter(loader)
    if persistent_workers_running(loader):
        return iter(loader)  # no worker starts
    leaving = multiprocessing.RawValue("b", 0)
    _start_servers(loader)
    with block_sigint_for_children(), _shield_from_sigterm(loader, leaving), _device_garbage_kept():
        workers = iter(loader)
    # Runs when the pass is garbage, and when Python exits: before Python ends the workers, as it has a priority.
    multiprocessing.util.Finalize(workers, _leave, (leaving, weakref.ref(workers)), exitpriority=100)
    return workers


def _start_servers(loader: DataLoader[Any]) -> None:
    """Start the processes that Python has beside workers that are not forked, if they do not run yet.

    Python lets signals through again when it starts its resource tracker, and a fork server hands on to whatever it
    forks later which signals were blocked when it began. So neither must start together with the workers.
    """
    context = multiprocessing if loader.multiprocessing_context is None else loader.multiprocessing_context
    method = context.get_start_method()
    if method != "fork":
        resource_tracker.ensure_running()
    if method == "forkserver":
        forkserver.ensure_running()


def _leave(leaving: Any, workers: Callable[[], Any]) -> None:
    """Let SIGTERM end the workers of a pass that is garbage, or that is still there when Python exits.

    Then Python ends them, wherever they are, and torch must not ask them to leave after that, as it does where a
    process of `multiprocessing` ends: it would wait for ever for a lock that one of them was ended with.
    """
    leaving.value = 1
    if (still_there := workers()) is not None:
        still_there._shutdown = True


@contextlib.contextmanager
def _device_garbage_kept() -> Iterator[None]:
    """Workers that are forked in this context do not collect the garbage of this process.

    It may hold tensors that were used on several streams of a device: to free one in a worker aborts the worker.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


Running = bool | None | Mapping[str, bool | None]
"""Whether persistent workers run; None for a loader without such workers, by name of several loaders."""


def persistent_workers_running(loaders: object) -> Running:
    """Whether the persistent workers of the loader run, or of each in a mapping of loaders."""
    return {n: _running(each) for n, each in loaders.items()} if isinstance(loaders, Mapping) else _running(loaders)


def with_inner(loaders: object) -> object:
    """The loader, or the mapping of them; by path with all that they are made of, where one is made of others.

    >>> with_inner([1, 2])
    [1, 2]
    """
    named = loaders if isinstance(loaders, Mapping) else {"": loaders}
    if not any(isinstance(each, Combined) for each in named.values()):
        return loaders
    return {path: inner for name, each in named.items() for path, inner in loaders_in(each, name).items()}


def _running(loader: object) -> bool | None:
    return loader._iterator is not None if isinstance(loader, DataLoader) and loader.persistent_workers else None


def set_persistent_workers(loader: object, running: Running) -> None:
    """Start or stop the persistent workers, so that `persistent_workers_running` gives `running` again.

    A DataLoader draws a base seed when it starts workers. With persistent workers it does so in its
    first pass only, so their presence changes the random numbers of the training. This function itself
    may draw: restore the generators after it.
    """
    if isinstance(loader, Mapping):
        for name, each in loader.items():
            set_persistent_workers(each, running.get(name) if isinstance(running, Mapping) else None)
        return
    if isinstance(loader, DataLoader) and None is not running is not persistent_workers_running(loader):
        loader._iterator = None
        if running:
            with ordered_by(loader, ()):
                start_pass(loader)


@contextlib.contextmanager
def workers_aside(*loaders: object) -> Iterator[None]:
    """Keep the persistent workers of these loaders, and the pass that they are in, from what reads the loaders now.

    Those of the loaders that one is made of too.

    It gets workers of its own, which end with this context.
    """
    each = (inner for loader in loaders for inner in loaders_in(loader).values())
    persistent: list[Any] = [loader for loader in each if persistent_workers_running(loader) is not None]
    kept = [loader._iterator for loader in persistent]
    for loader in persistent:
        loader._iterator = None
    try:
        yield
    finally:
        for loader, iterator in zip(persistent, kept, strict=True):
            loader._iterator = iterator


def with_new_workers(loader: Iterable[Any]) -> Iterable[Any]:
    """The loader, for a pass whose workers start and end with it: a copy of one whose workers stay.

    What is drawn in a worker that stays follows from all passes before, and so does what the loader draws when it
    begins a pass.
    """
    if isinstance(loader, Combined):
        combined = copy.copy(loader)
        combined.loaders = tuple(map(with_new_workers, loader.loaders))
        return combined
    if persistent_workers_running(loader) is None:
        return loader
    same: Any = copy.copy(loader)
    same._iterator = None
    object.__setattr__(same, "persistent_workers", False)  # a DataLoader refuses to have it set
    return same  # type: ignore[no-any-return]


def own_pass(train: object, valid: Iterable[Any] | None, name: str = "valid") -> Iterable[Any] | None:
    """The validation data, so that a pass over them does not end the pass over the training data.

    A DataLoader with persistent workers has one pass at a time. Where it is given for both, its copy is
    returned, which has the same dataset, order and settings and workers of its own.

    Args:
        train: the training data.
        valid: the validation data.
        name: what the validation data are called in an error.

    Raises:
        WorkloadError: both share something that has one pass at a time and cannot be copied.
    """
    if valid is None:
        return None
    if isinstance(train, Combined):
        for loader in train.loaders:
            valid = own_pass(loader, valid)
    if train is valid and hasattr(train, "state_dict") and hasattr(train, "load_state_dict"):
        raise WorkloadError(
            f"train and {name} are one {type(train).__name__}, which saves its place: a validation would move the "
            f"place in the training data. Give {name} a loader of its own"
        )
    for part in ("dataset", "sampler", "batch_sampler"):
        shared = getattr(train, part, None)
        in_workers = part == "dataset" and all(getattr(loader, "num_workers", None) for loader in (train, valid))
        if isinstance(shared, Iterator) and shared is getattr(valid, part, None) and not in_workers:
            raise WorkloadError(
                f"the loaders train and {name} share a {part} ({type(shared).__name__}) that is an iterator: a "
                f"validation would take the training's batches. Give {name} a {part} of its own"
            )
    if train is valid and isinstance(valid, DataLoader) and valid.persistent_workers:
        valid = copy.copy(valid)
        valid._iterator = None
    return valid


@contextlib.contextmanager
def ordered_by(loader: DataLoader[Any], order: Iterable[Any]) -> Iterator[None]:
    """A pass that starts in this context takes its indices from `order` instead of from the loader's sampler."""
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    own = getattr(loader, name)
    # DataLoader refuses to have its sampler set. With persistent workers it reuses one iterator for all passes.
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
def _shield_from_sigterm(loader: DataLoader[Any], leaving: Any) -> Iterator[None]:
    """Workers that start in this context get a `_SigtermShield`; a SIGTERM is delivered after they have started."""
    init = loader.worker_init_fn
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    loader.worker_init_fn = _SigtermShield(init, leaving)
    try:
        yield
    finally:
        loader.worker_init_fn = init
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _SigtermShield:
    """A worker_init_fn that installs a SIGTERM handler, and then calls the user's worker_init_fn.

    The handler ignores SIGTERM while the pass is in use. Afterwards, or when the parent process is gone,
    it ends the worker: torch and Python end workers by SIGTERM and wait for them. The signal is handled
    and not blocked, since programs that the dataset starts would inherit a block.

    Attributes:
        init: the user's worker_init_fn, or None.
        leaving: shared with the parent process; its `value` is 1 when the pass is no longer used.
    """

    def __init__(self, init: Callable[[int], None] | None, leaving: Any) -> None:
        self.init = init
        self.leaving = leaving

    def __call__(self, worker: int) -> None:
        parent = os.getppid()

        def asked(number: int, frame: FrameType | None) -> None:
            if self.leaving.value or os.getppid() != parent:
                os._exit(0)  # as torch's own handler does: torch reports a worker that a signal ends as an error

        signal.signal(signal.SIGTERM, asked)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        if self.init is not None:
            self.init(worker)
