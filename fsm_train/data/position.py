"""The position in a pass over the training data, and how to return to it.

A plain loader has no position that could be saved. But a pass over it follows from the random
generators at its start. So the generators are saved, the pass is started again from them, and the
finished batches are skipped: with a map-style dataset only the sampler advances, and no sample is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import attrs
from torch.utils.data import DataLoader, IterableDataset

from ..core.errors import WorkloadError
from ..core.state import State
from .augmentation import is_reproducible
from .generators import Generators
from .loaders import ordered_by, persistent_workers_running, set_persistent_workers, start_pass


def set_epoch(loader: object, epoch: int) -> None:
    """Call `set_epoch` of the loader's samplers that have one, as a DistributedSampler does."""
    for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        if set_of_sampler := getattr(sampler, "set_epoch", None):
            set_of_sampler(epoch)


def is_stateful(loader: object) -> bool:
    """Whether the loader saves and restores its own position, as torchdata's StatefulDataLoader does."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def fast_forward(loader: Iterable[Any], batches: int, at_start: Generators) -> Iterator[Any]:
    """A pass over the loader without its first batches. It leaves the random generators in no defined state.

    Args:
        loader: as it was when the pass began, the epoch of its samplers included.
        batches: how many batches to skip.
        at_start: the generators just before the pass began.
    """
    at_start.put_back()
    if type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset):
        return _skip_in_sampler(loader, batches)
    if isinstance(loader, list):
        return iter(loader[batches:])
    warnings.warn(
        f"to continue in the middle of an epoch, {batches} batches of the {type(loader).__name__} are read and thrown "
        "away; a loader with state_dict, such as torchdata's StatefulDataLoader, can do without",
        RuntimeWarning,
        stacklevel=2,
    )
    batches_left = start_pass(loader)
    next(batches_left, None)  # draws before the first batch are repeated exactly: the generators are the same
    before = Generators.now()
    next(islice(batches_left, batches - 1, batches - 1), None)
    if not before.same_as(Generators.now()):
        warnings.warn(
            f"the {type(loader).__name__} draws random numbers while it is read, and now draws others than it drew "
            "then: if its order depends on them (a shuffle buffer, say), continuing in this epoch is inexact",
            RuntimeWarning,
            stacklevel=2,
        )
    return batches_left


def _skip_in_sampler(loader: DataLoader[Any], batches: int) -> Iterator[Any]:
    """Iterate, skipping the first batches in the sampler, so that no sample is read. RNG draws keep their order."""
    sampler = _SkippingSampler(loader.sampler if loader.batch_sampler is None else loader.batch_sampler, batches)
    with ordered_by(loader, sampler):
        batches_left = start_pass(loader)
    sampler.skip()
    return batches_left


class _SkippingSampler:
    """A sampler without its first items. They are skipped late, so that the loader draws its base seed first.

    Attributes:
        sampler: the loader's own.
        to_skip: how many items are still to be skipped.
    """

    def __init__(self, sampler: Any, to_skip: int) -> None:
        self.sampler = sampler
        self.to_skip = to_skip

    def __iter__(self) -> _SkippingSampler:
        self.items = iter(self.sampler)
        return self

    def __next__(self) -> Any:
        self.skip()
        return next(self.items)

    def skip(self) -> None:
        """Skip the items now. Idempotent."""
        to_skip, self.to_skip = self.to_skip, 0
        next(islice(self.items, to_skip, to_skip), None)


@attrs.frozen
class EpochStart:
    """What a pass over the training data follows from.

    Attributes:
        generators: as they were just before the pass began.
        train, valid: whether the persistent workers of the two loaders ran; None without such workers.
    """

    generators: Generators
    train: bool | None
    valid: bool | None

    def as_of(self, train: object, valid: object, state: State) -> EpochStart:
        """What resuming from this state takes: the loaders' workers as they are now, where they matter then.

        If the epoch's batches are over, only the presence of the workers matters; otherwise the workers
        and the generators at its start do.

        Args:
            train, valid: the two loaders.
            state: that of the checkpoint.
        """
        now = persistent_workers_running(train) if state.batches_over else self.train
        return attrs.evolve(self, train=now, valid=persistent_workers_running(valid))


@attrs.frozen
class SuspendPoint:
    """Where a training was suspended.

    Attributes:
        iteration: finished training batches.
        generators: as they were then.
        from_file: a checkpoint gives this point, and the pass over the data is not resumed yet.
    """

    iteration: int
    generators: Generators
    from_file: bool = False


def require_suspended_at(point: SuspendPoint | None, state: State) -> SuspendPoint:
    """The point, if the training was suspended there in this state.

    Raises:
        WorkloadError: it was suspended elsewhere, or not at all.
    """
    if point is None or point.iteration != state.iteration:
        now_at = "in no suspended training" if point is None else f"at {point.iteration}"
        raise WorkloadError(
            f"this state was suspended at iteration {state.iteration}, but its model, optimizer and data are "
            f"{now_at}: continue from the state that the last run returned"
        )
    return point


def resume_iterator(train: Iterable[Any], valid: object, start: EpochStart | None, state: State) -> Iterator[Any]:
    """The rest of the pass over the training data in this state. The generators are left in no defined state.

    Args:
        train, valid: the two loaders; their persistent workers are started or stopped as they were.
        start: of the epoch under way; None before the first one.
        state: the one that the training resumes from.
    """
    if start is not None:
        set_persistent_workers(train, start.train)
        set_persistent_workers(valid, start.valid)
    if is_stateful(train):
        rest = start_pass(train)  # also of a finished pass, or the loader would give this rest in the next epoch
        return iter(()) if state.batches_over else rest
    if state.batches_over or start is None:
        return iter(())
    return fast_forward(train, state.batch, start.generators)


def inexact(loader: object, state: State) -> Iterator[str]:
    """What of a pass over this loader cannot be restored exactly, if it is saved in this state: a note for each."""
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return
    if not getattr(loader, "in_order", True):
        yield "the order of the batches: the loader has in_order=False"
    # A stream is read again from its start, by workers with the same seeds.
    skips = is_stateful(loader) or not isinstance(loader.dataset, IterableDataset)
    inside = skips and state.batch > 0 and not state.batches_over
    if (inside or loader.persistent_workers) and not is_reproducible(loader):
        yield (
            f"random augmentation in the loader's {loader.num_workers} workers: wrap the loader in "
            "fsm_train.data.reproducible"
        )
