"""The position in a pass over the training data, and how to return to it.

A plain loader has no position that could be saved. But a pass over it follows from the random
generators at its start. So the generators are saved, the pass is started again from them, and the
finished batches are skipped: with a map-style dataset only the sampler advances, and no sample is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from types import GeneratorType
from typing import Any

import attrs
from torch.utils.data import DataLoader, IterableDataset

from ..core.errors import WorkloadError
from ..core.state import State
from .augmentation import is_reproducible
from .generators import Generators
from .layers import Combined
from .loaders import Running, ordered_by, persistent_workers_running, set_persistent_workers, start_pass, with_inner
from .pass_start import is_sequence
from .sources import Sources, own_state


def is_stateful(loader: object) -> bool:
    """Whether the loader seems to save its own position, as torchdata's StatefulDataLoader does.

    `own_place` finds out. It is called for a checkpoint only: to ask may start the loader's workers.
    """
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def own_place(loader: object) -> tuple[Any, str]:
    """The position that the loader saves itself, or None; and a note if it should be able to, and is not."""
    try:
        return own_state(loader), ""
    except Exception as error:
        return None, (
            f"the place that the {type(loader).__name__} keeps itself: its state_dict raises "
            f"{type(error).__name__} ({error}); it is saved as a loader without state_dict is"
        )


def fast_forward(
    loader: Iterable[Any], batches: int, at_start: Generators, then: Generators, at_first: Generators | None = None
) -> Iterator[Any]:
    """A pass over the loader without its first batches. It leaves the random generators in no defined state.

    Args:
        loader: as it was when the pass began, the epoch of its samplers included.
        batches: how many batches to skip.
        at_start: the generators just before the pass began.
        then: the generators when those batches had been trained.
        at_first: the generators just before the first batch was asked for, if others drew since the pass began.
    """
    at_start.put_back()
    if type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset):
        return _skip_in_sampler(loader, batches, then, at_first)
    if is_sequence(loader):
        return islice(start_pass(loader), batches, None)
    warnings.warn(
        f"to continue in the middle of an epoch, {batches} batches of the {type(loader).__name__} are read and thrown "
        "away; a loader with state_dict, such as torchdata's StatefulDataLoader, can do without",
        RuntimeWarning,
        stacklevel=2,
    )
    batches_left = start_pass(loader)
    if at_first is not None:
        at_first.put_back()
    next(batches_left, None)  # draws before the first batch are repeated exactly: the generators are the same
    before = then.again()
    next(islice(batches_left, batches - 1, batches - 1), None)
    if others := before.shared_draws(then.again(), then):
        raise_inexact(f"the {type(loader).__name__} draws random numbers while it is read", others)
    return batches_left


def raise_inexact(found: str, others: str) -> None:
    """Warn that a pass draws its numbers from a generator that others draw from in between."""
    warnings.warn(
        f"{found}, and now draws others than it drew then, since something else draws from {others} as well: if its "
        "order depends on them (a shuffle buffer, say), going on in this epoch is inexact",
        RuntimeWarning,
        stacklevel=3,
    )


def _skip_in_sampler(
    loader: DataLoader[Any], batches: int, then: Generators, at_first: Generators | None
) -> Iterator[Any]:
    """Iterate, skipping the first batches in the sampler, so that no sample is read. RNG draws keep their order."""
    own = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    sampler = _SkippingSampler(own, batches, then)
    with ordered_by(loader, sampler):
        batches_left = start_pass(loader)
    if at_first is not None and sampler.after_first is None:  # no worker has asked for an index yet
        at_first.put_back()
    sampler.skip()
    assert sampler.after_first is not None
    if others := sampler.after_first.shared_draws(then.again(), then):
        raise_inexact(f"the {type(own).__name__} draws random numbers between batches", others)
    return batches_left


class _SkippingSampler:
    """A sampler without its first items. They are skipped late, so that the loader draws its base seed first.

    Attributes:
        sampler: the loader's own.
        to_skip: how many items are still to be skipped.
        kind: has the generators that are looked at.
        after_first: the generators when the first item had been skipped.
    """

    def __init__(self, sampler: Any, to_skip: int, kind: Generators) -> None:
        self.sampler = sampler
        self.to_skip = to_skip
        self.kind = kind
        self.after_first: Generators | None = None

    def __iter__(self) -> _SkippingSampler:
        self.items = iter(self.sampler)
        return self

    def __next__(self) -> Any:
        self.skip()
        return next(self.items)

    def skip(self) -> None:
        """Skip the items now. Idempotent."""
        to_skip, self.to_skip = self.to_skip, 0
        if to_skip or self.after_first is None:
            next(islice(self.items, min(to_skip, 1), min(to_skip, 1)), None)
            self.after_first = self.kind.again()
            next(islice(self.items, max(to_skip - 1, 0), max(to_skip - 1, 0)), None)


@attrs.frozen
class EpochStart:
    """What a pass over the training data follows from.

    Attributes:
        generators: as they were just before the pass began; at least those that it follows from.
        train, valid: whether the persistent workers of the two loaders ran; None without such workers.
        sources: of the training data, as they were just before the pass began; None if nobody looked.
    """

    generators: Generators
    train: Running
    valid: Running
    sources: Sources | None = None

    def as_of(self, train: object, valid: object, state: State) -> EpochStart:
        """What resuming from this state takes: the loaders' workers as they are now, where they matter then.

        If the epoch's batches are over, only the presence of the workers matters; otherwise the workers
        and the generators at its start do.

        Args:
            train, valid: the two loaders.
            state: that of the checkpoint.
        """
        now = persistent_workers_running(train) if state.batches_over else self.train
        return attrs.evolve(self, train=now, valid=persistent_workers_running(with_inner(valid)))


@attrs.frozen
class BatchStart:
    """What a batch follows from, as it was before that batch was fetched.

    Attributes:
        batch: its index in the epoch.
        generators: their states.
        sources: of the training data.
    """

    batch: int
    generators: Generators
    sources: Sources

    @staticmethod
    def now(batch: int, loader: object, epoch: EpochStart) -> BatchStart:
        """As it is now. What there is to look at is what there was at the epoch's start: to search takes longer."""
        sources = epoch.sources
        if sources is None or sources.own or sources.attributes.keys() - _UNCHANGED.get(type(loader), set()):
            sources = Sources.now(loader)
        return BatchStart(batch, epoch.generators.again(), sources)


_UNCHANGED: dict[type, set[str]] = {DataLoader: {"train"}}
"""By the type of the loader, the layers whose attributes do not change within a pass."""


@attrs.frozen
class SuspendPoint:
    """Where a training was suspended.

    Attributes:
        iteration: finished training batches.
        generators: as they were then.
        from_file: a checkpoint gives this point, and the pass over the data is not resumed yet.
        sources: of the training data, as they were then; None if they need not be restored.
        place: what the loader saved of its own position; None if it does not.
    """

    iteration: int
    generators: Generators
    from_file: bool = False
    sources: Sources | None = None
    place: Any = None


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


def resume_iterator(
    train: Iterable[Any], valid: object, start: EpochStart | None, state: State, point: SuspendPoint
) -> Iterator[Any]:
    """The rest of the pass over the training data in this state. The generators are left in no defined state.

    Args:
        train, valid: the two loaders; their persistent workers are started or stopped as they were.
        start: of the epoch under way; None before the first one.
        state: the one that the training resumes from.
        point: where it was suspended.
    """
    stateful = point.place is not None and is_stateful(train)
    if start is not None:
        set_persistent_workers(train, None if stateful else start.train)
        set_persistent_workers(with_inner(valid), start.valid)
        if start.sources is not None and not state.batches_over:
            start.sources.put_back(train)
    if stateful:
        rest = _resume_own_place(train, start, state, point)
    elif state.batches_over or start is None:
        rest = iter(())
    else:
        rest = fast_forward(train, state.batch, start.generators, point.generators)
    if point.sources is not None:
        point.sources.put_back(train)
    return rest


def _resume_own_place(
    train: Iterable[Any], start: EpochStart | None, state: State, point: SuspendPoint
) -> Iterator[Any]:
    """The rest of a pass over a loader that saves its own place, and starts its workers with it."""
    generators = None if start is None else start.generators
    return own_place_again(train, generators, point.place, point.generators, over=state.batches_over)


def own_place_again(
    train: Iterable[Any], at_start: Generators | None, place: Any, then: Generators, *, over: bool
) -> Iterator[Any]:
    """The rest of a pass over a loader from the place that it saved itself.

    Args:
        train: the loader.
        at_start: the generators just before the pass began; None if that is not known.
        place: what the loader saved.
        then: the generators when it did.
        over: whether nothing more is read in this pass.
    """
    if at_start is not None:
        at_start.put_back()  # for a loader that counts its batches, and draws its order again
    train.load_state_dict(place)  # type: ignore[attr-defined]
    rest = start_pass(train)
    if over:
        next(rest, None)  # the loader is to be through with this pass, or would give its rest in the next epoch
        return iter(())
    if not isinstance(rest, GeneratorType):
        return rest
    # A generator function has done nothing yet, and is to do it before the generators are put back.
    before = then.again()
    first = list(islice(rest, 1))
    if before.changed(then.again()):
        warnings.warn(
            f"the {type(train).__name__} begins its pass with the first batch that it gives: if random numbers are "
            "drawn while samples are read in this process, those of one batch are others",
            RuntimeWarning,
            stacklevel=2,
        )
    return chain(first, rest)


def inexact(loader: object, state: State, *, has_place: bool) -> Iterator[str]:
    """What of a pass over this loader cannot be restored exactly, if it is saved in this state: a note for each.

    Args:
        loader: of the training data.
        state: that of the checkpoint.
        has_place: whether the loader saves its own place.
    """
    if isinstance(loader, Combined):
        for inner in loader.loaders:
            place, trouble = own_place(inner)
            yield from filter(None, (trouble, *inexact(inner, state, has_place=place is not None)))
        return
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return
    if not getattr(loader, "in_order", True):
        yield "the order of the batches: the loader has in_order=False"
    # A stream is read again from its start, by workers with the same seeds.
    skips = has_place or not isinstance(loader.dataset, IterableDataset)
    inside = skips and state.batch > 0 and not state.batches_over
    if (inside or loader.persistent_workers) and not is_reproducible(loader):
        yield (
            f"random augmentation in the loader's {loader.num_workers} workers: wrap the loader in "
            "fsm_train.data.reproducible"
        )
