"""A loader of this rank's share of the data: `sharded(loader)`.

Rule of this file: the batches of all ranks together are drawn in the same way on each rank, from the seed and the
epoch alone, and each takes its part of them. So nothing is exchanged, no sample comes twice, and none is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Sampler, SequentialSampler

from ..core.arguments import kind_of
from ..core.checks import check_count
from ..core.errors import WorkloadError
from .generators import Generators, generators_of, seed_all, seed_own
from .loaders import settings_of
from .own_rank import own_rank


def sharded(
    data: Any,
    *,
    batch_size: int | None = None,
    per_rank: bool = False,
    seed: int = 0,
    rank: int | None = None,
    ranks: int | None = None,
    **settings: Any,
) -> DataLoader[Any]:
    """The part of a DataLoader's batches, or of a dataset, that is this rank's.

    A batch is that of all ranks together: with batch_size=32, each of 4 ranks gets 8 of its 32 samples. So the same
    script takes the same steps under `python` and under torchrun, on any number of ranks. With `per_rank=True` each
    rank has batches of that size, as with torch's DistributedSampler, and the batch of all is as many times larger.

    Shares differ by at most one sample, and nothing is padded: no sample comes twice. A last batch of fewer samples
    than there are ranks is left out of a training, which a note says; a validation counts it.

    The order is drawn by the loader's own sampler, from `seed` and the epoch alone, so it is the same on all ranks and
    when a training is resumed. Random augmentation in workers differs between the ranks. Of a loader's `generator`,
    nothing is drawn.

    >>> data = list(range(10))
    >>> [batch.tolist() for batch in sharded(data, batch_size=4)]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    >>> [batch.tolist() for batch in sharded(DataLoader(data, batch_size=4), rank=1, ranks=2)]
    [[1, 3], [5, 7], [9]]

    Args:
        data: a DataLoader over a map-style dataset, or such a dataset.
        batch_size: for a dataset, the samples of a batch.
        per_rank: whether the size of a batch is that of each rank's own.
        seed: of the order.
        rank, ranks: the number of this process and how many there are, together; by default those of the process group
            or of torchrun, or the only one.
        **settings: for a dataset, those of its DataLoader, such as shuffle=True or num_workers=4.

    Raises:
        WorkloadError: this data cannot be shared so: a stream, a loader without batches, one that has a share already.
        TypeError: settings beside a loader, or no batch_size beside a dataset.
        ValueError: seed, rank or ranks make no sense.
    """
    loader = _loader(data, batch_size, settings)
    _check(loader)
    check_count("seed", seed)
    if (rank is None) is not (ranks is None):
        raise TypeError("give rank and ranks together, sharded(loader, rank=1, ranks=4), or neither")
    if rank is not None and ranks is not None:
        check_count("rank", rank)
        check_count("ranks", ranks, least=1)
        if rank >= ranks:
            raise ValueError(f"rank={rank}: of ranks={ranks} it is a number from 0 to {ranks - 1}")
    batches: Any = loader.batch_sampler
    if per_rank and type(batches) is not BatchSampler:
        raise WorkloadError(f"per_rank=True needs a batch_size: a {type(batches).__name__} says itself what a batch is")
    return DataLoader(
        loader.dataset,
        batch_sampler=ShardedBatches(batches, seed, rank=rank, ranks=ranks, per_rank=per_rank),
        collate_fn=loader.collate_fn,
        # The generator would give the workers of all ranks the same seeds.
        **{**settings_of(loader), "generator": None},
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )


def share_of(loader: object) -> ShardedBatches | None:
    """What shares out the batches of this loader, which `sharded` made, and perhaps `reproducible` after it."""
    for batches in (getattr(loader, "batch_sampler", None), getattr(getattr(loader, "sampler", None), "sampler", None)):
        if isinstance(batches, ShardedBatches):
            return batches
    return None


def has_no_part(loader: object) -> bool:
    """Whether `sharded` made this loader, and has no batch for this rank."""
    share = share_of(loader)
    return share is not None and len(share) == 0


def _loader(data: Any, batch_size: int | None, settings: dict[str, Any]) -> DataLoader[Any]:
    if isinstance(data, DataLoader):
        if batch_size is not None or settings:
            given = ", ".join([*(["batch_size"] if batch_size is not None else []), *settings])
            raise TypeError(f"sharded was given a DataLoader, which has its settings, and {given}: give them to that")
        return data
    if batch_size is None:
        raise TypeError(f"sharded of {kind_of(data)}: give a DataLoader, or sharded(dataset, batch_size=32)")
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise WorkloadError(f"sharded takes a dataset whose samples have an index, and not {kind_of(data)}. {_STREAM}")
    return DataLoader(data, batch_size=batch_size, **settings)


_STREAM = (
    "A stream is shared out where it is read: let its __iter__ give itertools.islice(samples, rank, None, ranks), from "
    "samples that come in one order on all ranks"
)


def _check(loader: DataLoader[Any]) -> None:
    """Refuse a loader that cannot be shared out.

    Raises:
        WorkloadError: with what to write.
    """
    if share_of(loader) is not None:
        raise WorkloadError("this loader is a rank's share already: sharded once is enough")
    if type(loader) is not DataLoader:
        raise WorkloadError(
            f"sharded takes a DataLoader of torch itself, or a dataset, and not a {type(loader).__name__}: its own "
            "way of reading would be lost"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise WorkloadError(f"sharded takes data whose samples have an index. {_STREAM}")
    if loader.batch_sampler is None:
        raise WorkloadError(
            "this loader has batch_size=None, so there are no batches to share out: shard a loader of batches. With "
            "reproducible, write reproducible(sharded(loader))"
        )
    if isinstance(getattr(loader.batch_sampler, "sampler", None), DistributedSampler):
        raise WorkloadError(
            "this loader has a DistributedSampler, so it is a rank's share already: leave the sampler out, "
            "sharded(DataLoader(dataset, batch_size=32, shuffle=True))"
        )


class ShardedBatches(Sampler[list[Any]]):
    """A batch sampler: of each batch of another one, the part of this rank.

    Attributes:
        batches: those of all ranks together.
        per_rank: whether their size is that of one rank's part.
        seed: of their order.
        epoch: set by `set_epoch`.
    """

    def __init__(
        self, batches: Any, seed: int, *, rank: int | None = None, ranks: int | None = None, per_rank: bool = False
    ) -> None:
        self.batches = batches
        self.per_rank = per_rank
        self.seed = seed
        self.epoch = 0
        self._rank, self._ranks = rank, ranks

    @property
    def place(self) -> tuple[int, int]:
        """The number of this rank, and how many there are; there may be a process group only after this was made."""
        return own_rank() if self._rank is None or self._ranks is None else (self._rank, self._ranks)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Any]]:
        rank, ranks = self.place
        begin, short = 0, 0
        for batch in self.of_all():
            if short:
                raise WorkloadError(
                    f"a batch of {short} samples has none for some of the {ranks} ranks, and another batch follows: "
                    "make batches larger, or write sharded(…, per_rank=True)"
                )
            share = batch[(rank - begin) % ranks :: ranks]
            begin += len(batch)
            short = len(batch) if len(batch) < ranks else 0
            if share:
                yield share

    def of_all(self) -> Iterator[list[Any]]:
        """The batches of all ranks together in this epoch. No generator is another one afterwards."""
        union = self.union
        if type(union) is BatchSampler and type(union.sampler) is SequentialSampler:
            return iter(union)
        own = [layer.part for layer in generators_of(order=union)]
        before, seed = Generators.now(own), Random(f"{self.seed}/{self.epoch}").getrandbits(63)
        try:
            seed_all(seed)
            seed_own(own, seed)
            return iter([list(batch) for batch in union])
        finally:
            before.put_back()

    @property
    def union(self) -> Any:
        """The batch sampler of all ranks together."""
        own = self.batches
        return BatchSampler(own.sampler, own.batch_size * self.place[1], own.drop_last) if self.per_rank else own

    def __len__(self) -> int:
        """How many batches this rank gets; of a batch sampler of one's own, as many as it says."""
        if type(self.batches) is not BatchSampler:
            return len(self.batches)
        whole, last = self._whole_and_last()
        size, (rank, ranks) = self.union.batch_size, self.place
        if size < ranks:  # some ranks have nothing of a batch
            whole = sum((rank - i * size) % ranks < size for i in range(whole))
        return whole + bool(last)

    def sizes(self) -> tuple[int, float, float] | None:
        """How many batches this rank gets, the samples of each, and of the last; None where they take turns to differ.

        It relies on the length of the sampler within a batch sampler of torch.
        """
        size, ranks = self.union.batch_size, self.place[1]
        batches, last = self._whole_and_last()
        if size % ranks or batches + last == 0:
            return None
        each = size // ranks
        return (batches + 1, each, last) if last else (batches, each, each)

    def _whole_and_last(self) -> tuple[int, int]:
        """How many batches are whole, and how many samples this rank has of the one after them."""
        union, (rank, ranks) = self.union, self.place
        whole, rest = divmod(len(union.sampler), union.batch_size)
        begin = whole * union.batch_size
        return whole, 0 if union.drop_last else len(range((rank - begin) % ranks, rest, ranks))
