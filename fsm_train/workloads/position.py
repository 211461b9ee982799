"""Where a pass over the training data is, and how to get there again.

A plain loader has no place that could be saved. But a pass over it follows from the generators at
its beginning, so those are kept, and the pass is begun again and wound forward: of a map-style
dataset no sample is read for that, only the sampler goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from ..data import is_reproducible
from .generators import Generators
from .loaders import begun, settings_of

if TYPE_CHECKING:
    from ..core.state import State
    from .supervised import Supervised


def set_epoch(loader: object, epoch: int) -> None:
    """Tell the loader's samplers which epoch it is, where they want to know, as a DistributedSampler does."""
    for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        if tell := getattr(sampler, "set_epoch", None):
            tell(epoch)


def keeps_its_place(loader: object) -> bool:
    """Whether the loader itself can say and take back where it is, as torchdata's StatefulDataLoader can."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def wound_forward(loader: Iterable[Any], batches: int, at_beginning: Generators) -> Iterator[Any]:
    """A pass over the loader of which so many batches are over. The generators are left anywhere.

    Args:
        loader: as it was when the pass began, its samplers' epoch included.
        batches: how many are over.
        at_beginning: the generators just before the pass began.
    """
    at_beginning.put_back()
    if type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset):
        return _with_sampler_wound(loader, batches)
    if isinstance(loader, list):
        return iter(loader[batches:])
    warnings.warn(
        f"to go on in the middle of an epoch, {batches} batches of the {type(loader).__name__} are read and thrown "
        "away; a loader with state_dict, such as torchdata's StatefulDataLoader, can do without",
        RuntimeWarning,
        stacklevel=2,
    )
    wound = begun(loader)
    next(wound, None)  # what is drawn before the first batch was drawn then too, and from the same generators
    before = Generators.now()
    next(islice(wound, batches - 1, batches - 1), None)
    if not before.same_as(Generators.now()):
        warnings.warn(
            f"the {type(loader).__name__} draws random numbers while it is read, and now draws others than it drew "
            "then: if its order depends on them (a shuffle buffer, say), going on in this epoch is inexact",
            RuntimeWarning,
            stacklevel=2,
        )
    return wound


def _with_sampler_wound(loader: DataLoader[Any], batches: int) -> Iterator[Any]:
    """The pass of a loader that is the same but for its sampler, which has left the first batches out.

    The draws are in the order of an undisturbed pass: the loader's own first, then the sampler's.
    """
    batched = loader.batch_sampler is not None
    rest = _Rest(loader.batch_sampler if batched else loader.sampler, batches)
    order: dict[str, Any] = {"batch_sampler": rest} if batched else {"sampler": rest, "batch_size": None}
    wound = begun(DataLoader(loader.dataset, collate_fn=loader.collate_fn, **order, **settings_of(loader)))
    rest.wind()
    return wound


class _Rest:
    """What a sampler gives after its first items."""

    def __init__(self, sampler: Any, left_out: int) -> None:
        self.sampler = sampler
        self.left_out = left_out
        self.wound: Iterator[Any] | None = None

    def __iter__(self) -> _Rest:
        return self

    def __next__(self) -> Any:
        return next(self.wind())

    def wind(self) -> Iterator[Any]:
        if self.wound is None:
            self.wound = iter(self.sampler)
            next(islice(self.wound, self.left_out, self.left_out), None)
        return self.wound


def find_again(work: Supervised, state: State) -> Iterator[Any]:
    """The pass over the training data that was under way in this state."""
    if keeps_its_place(work.train):
        found = begun(work.train)  # also when it is over, or the next epoch would be taken for the rest of this one
        return iter(()) if state.batches_over else found
    if state.batches_over or work.epoch_start is None:
        return iter(())
    return wound_forward(work.train, state.batch, work.epoch_start)


def inexact(loader: object, state: State) -> Iterator[str]:
    """What of a pass over this loader cannot be brought back exactly, if it was saved in this state."""
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return
    if not getattr(loader, "in_order", True):
        yield "the order of the batches: the loader has in_order=False"
    # A stream is read again from its beginning, by workers with the same seeds.
    wound = keeps_its_place(loader) or not isinstance(loader.dataset, IterableDataset)
    inside = wound and state.batch > 0 and not state.batches_over
    if (inside or loader.persistent_workers) and not is_reproducible(loader):
        yield (
            f"random augmentation in the loader's {loader.num_workers} workers: wrap the loader in "
            "fsm_train.data.reproducible"
        )
