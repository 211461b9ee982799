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

import attrs
from torch.utils.data import DataLoader, IterableDataset

from ..core.errors import WorkloadError
from .augmentation import is_reproducible
from .generators import Generators
from .loaders import begun, let_workers_be, ordered_by, workers_there

if TYPE_CHECKING:
    from ..core.state import State
    from ..supervised.workload import Supervised


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
    """A pass whose sampler has left the first batches out. All draws are in the order of an undisturbed pass."""
    rest = _Rest(loader.sampler if loader.batch_sampler is None else loader.batch_sampler, batches)
    with ordered_by(loader, rest):
        wound = begun(loader)
    rest.wind()
    return wound


class _Rest:
    """What a sampler gives after its first items."""

    def __init__(self, sampler: Any, left_out: int) -> None:
        self.sampler = sampler
        self.left_out = left_out

    def __iter__(self) -> _Rest:
        self.whole = iter(self.sampler)
        return self

    def __next__(self) -> Any:
        self.wind()
        return next(self.whole)

    def wind(self) -> None:
        left_out, self.left_out = self.left_out, 0
        next(islice(self.whole, left_out, left_out), None)


@attrs.frozen
class Beginning:
    """What a pass over the training data follows from.

    Attributes:
        generators: as they stood just before it began.
        train, valid: whether the workers of the two loaders were there, if they stay from pass to pass.
    """

    generators: Generators
    train: bool | None
    valid: bool | None

    @staticmethod
    def now(work: Supervised) -> Beginning:
        return Beginning(Generators.now(work.own_generators()), workers_there(work.train), workers_there(work.valid))

    def seen_from(self, work: Supervised, state: State) -> Beginning:
        """What is needed to go on from this state: of a pass that is over only what it left behind, its workers."""
        train = workers_there(work.train) if state.batches_over else self.train
        return attrs.evolve(self, train=train, valid=workers_there(work.valid))


@attrs.frozen
class Left:
    """Where a training was left.

    Attributes:
        iteration: finished training batches.
        generators: as they stood then.
        from_file: whether this is what a checkpoint says, and the pass over the data still to be found again.
    """

    iteration: int
    generators: Generators
    from_file: bool = False


def left_there(left: Left | None, state: State) -> Left:
    """Where the training was left, if it was so in this state.

    Raises:
        WorkloadError: it was not.
    """
    if left is None or left.iteration != state.iteration:
        now_at = "in no suspended training" if left is None else f"at {left.iteration}"
        raise WorkloadError(
            f"this state was suspended at iteration {state.iteration}, but its model, optimizer and data are "
            f"{now_at}: go on from the state that the last run returned"
        )
    return left


def find_again(work: Supervised, state: State) -> Iterator[Any]:
    """The pass over the training data that was under way in this state. The generators are left anywhere."""
    beginning = work.beginning
    if beginning is not None:
        let_workers_be(work.train, beginning.train)
        let_workers_be(work.valid, beginning.valid)
    if keeps_its_place(work.train):
        found = begun(work.train)  # also when it is over, or the next epoch would be taken for the rest of this one
        return iter(()) if state.batches_over else found
    if state.batches_over or beginning is None:
        return iter(())
    return wound_forward(work.train, state.batch, beginning.generators)


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
