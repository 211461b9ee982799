"""`sharded`: the parts of all ranks are the batches of one process."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fsm_train import Flag, Phase, Supervised, Transition, WorkloadError, on, restore, run, sharded, start
from fsm_train.callbacks import checkpoint
from fsm_train.data import reproducible, together
from fsm_train.data.batches import check_loader, is_empty
from fsm_train.data.layers import set_epoch
from fsm_train.data.own_rank import own_rank
from fsm_train.data.prefetch import prefetch_obstacle
from fsm_train.data.sharded import has_no_part
from tests.diabetes_training import linear, sgd, weights_of
from tests.models import diabetes

NUMBERS = list(range(37))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


class Buckets(Sampler[list[int]]):
    """A batch sampler of one's own, which draws by Python's generator."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = random.sample(NUMBERS, sum(self.sizes))
        for size in self.sizes:
            yield order[:size]
            del order[:size]


def numbers(loader: DataLoader[Any]) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(NUMBERS, batch_size=8),
    "shuffled": lambda: DataLoader(NUMBERS, batch_size=8, shuffle=True),
    "of another size": lambda: DataLoader(NUMBERS, batch_size=9, shuffle=True),
    "without the rest": lambda: DataLoader(NUMBERS, batch_size=9, shuffle=True, drop_last=True),
    "weighted": lambda: DataLoader(NUMBERS, batch_size=8, sampler=WeightedRandomSampler([1.0] * 37, 30)),
    "subset": lambda: DataLoader(NUMBERS, batch_size=8, sampler=SubsetRandomSampler(range(20))),
    "with a generator": lambda: DataLoader(NUMBERS, batch_size=8, shuffle=True, generator=torch.Generator()),
    "buckets": lambda: DataLoader(NUMBERS, batch_sampler=Buckets(4, 9, 6, 5)),
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", LOADERS)
def test_parts_of_all_ranks_are_the_batches_of_one(name: str, ranks: int) -> None:
    """In each epoch, each batch: none of its samples comes twice or is missing, and shares differ by one sample."""
    alone = sharded(LOADERS[name]())
    parts = [sharded(LOADERS[name](), rank=rank, ranks=ranks) for rank in range(ranks)]
    orders = []
    for epoch in range(2):
        for loader in (alone, *parts):
            set_epoch(loader, epoch)
        whole, shares = numbers(alone), [numbers(part) for part in parts]
        orders.append(whole)

        assert [len(share) for share in shares] == [len(part) for part in parts]
        for i, batch in enumerate(whole):
            assert sorted(n for share in shares for n in share[i : i + 1] for n in n) == sorted(batch)
        counted = [sum(map(len, share)) for share in shares]
        assert max(counted) - min(counted) <= 1
    assert (orders[0] == orders[1]) is (name == "in order")


def test_order_follows_from_seed_and_epoch() -> None:
    """And not from what was drawn before, nor from a generator of the loader."""
    generator = torch.Generator().manual_seed(1)
    loader = sharded(DataLoader(NUMBERS, batch_size=8, shuffle=True, generator=generator))
    first = numbers(loader)
    torch.manual_seed(5)
    generator.manual_seed(9)
    set_epoch(loader, 3)
    other = numbers(loader)
    set_epoch(loader, 0)

    assert numbers(loader) == first != other
    assert numbers(sharded(DataLoader(NUMBERS, batch_size=8, shuffle=True), seed=1)) != first


def test_drawing_the_order_leaves_all_generators_alone() -> None:
    """Those of the process, and of the sampler; the loader itself draws one number, for workers."""
    generator = torch.Generator()
    samplers = (RandomSampler(NUMBERS), RandomSampler(NUMBERS, generator=generator))
    for batches in (*(BatchSampler(sampler, 8, drop_last=False) for sampler in samplers), Buckets(4, 9)):
        shares = sharded(DataLoader(NUMBERS, batch_sampler=batches)).batch_sampler
        before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state(), generator.get_state()  # type: ignore[index]
        assert len(list(shares)) == len(batches)  # type: ignore[arg-type]
        after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state(), generator.get_state()  # type: ignore[index]

        assert before[:2] == after[:2]
        assert all(map(torch.equal, before[2:], after[2:]))


def test_batches_of_each_rank_may_have_the_size() -> None:
    """With per_rank=True that of all is as many times larger."""
    parts = [sharded(NUMBERS, batch_size=8, shuffle=True, per_rank=True, rank=rank, ranks=3) for rank in range(3)]
    whole = sharded(NUMBERS, batch_size=24, shuffle=True)

    assert [[len(batch) for batch in part] for part in parts] == [[8, 5], [8, 4], [8, 4]]
    for batch, shares in zip(numbers(whole), zip(*map(numbers, parts), strict=True), strict=True):
        assert sorted(n for share in shares for n in share) == sorted(batch)
    assert numbers(sharded(NUMBERS, batch_size=8, per_rank=True)) == numbers(sharded(NUMBERS, batch_size=8))


def test_a_last_batch_may_have_no_part_for_a_rank() -> None:
    """The length says so."""
    parts = [sharded(range(9), batch_size=4, rank=rank, ranks=3) for rank in range(3)]

    assert [len(part) for part in parts] == [2, 2, 3]
    assert [numbers(part) for part in parts] == [[[0, 3], [6]], [[1], [4, 7]], [[2], [5], [8]]]


def test_a_share_may_be_empty_where_the_data_are_not() -> None:
    """Such a loader is accepted, which a loader without batches is not."""
    parts = [sharded(range(1), batch_size=4, rank=rank, ranks=2) for rank in range(2)]

    assert [has_no_part(part) for part in (*parts, [1], DataLoader(NUMBERS))] == [False, True, False, False]
    assert [is_empty(part) for part in parts] == [False, False]
    assert is_empty(sharded(range(3), batch_size=4, drop_last=True, rank=1, ranks=2))
    assert all(check_loader(part, "valid") is part for part in parts)


def test_a_batch_in_between_without_a_part_for_a_rank_is_refused() -> None:
    """Batches of the ranks would no longer be parts of one."""
    for rank in range(2):
        with pytest.raises(WorkloadError, match="a batch of 1 samples has none for some of the 2 ranks"):
            list(sharded(DataLoader(NUMBERS, batch_sampler=Buckets(4, 1, 4)), rank=rank, ranks=2))


def test_settings_of_the_loader_are_kept() -> None:
    """All but its generator; it travels to another process."""
    loader = sharded(
        DataLoader(NUMBERS, batch_size=8, num_workers=2, collate_fn=max, prefetch_factor=3, persistent_workers=True)
    )
    same = pickle.loads(pickle.dumps(loader))

    for each in (loader, same):
        assert (each.num_workers, each.collate_fn, each.prefetch_factor, each.persistent_workers) == (2, max, 3, True)
        assert each.generator is None
        assert len(each.batch_sampler) == 5
    assert prefetch_obstacle(loader) is None


def test_workers_read_the_samples_of_this_rank() -> None:
    """Which are drawn in the process itself."""
    one, other = (
        sharded(NUMBERS, batch_size=8, shuffle=True, num_workers=workers, rank=1, ranks=2) for workers in (0, 2)
    )
    assert numbers(one) == numbers(other)


class Noise:
    """Each sample is a random number."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> float:
        return random.random()


def test_reproducible_augmentation_differs_between_ranks() -> None:
    """And is the same again on each; rank 0 draws what one process draws."""

    def drawn(**place: int) -> list[Any]:
        return numbers(reproducible(sharded(Noise(), batch_size=4, **place)))

    one, other, alone = drawn(rank=0, ranks=2), drawn(rank=1, ranks=2), drawn()
    assert drawn(rank=1, ranks=2) == other
    assert all(a[:2] == b for a, b in zip(alone, one, strict=True))
    assert not {n for batch in one for n in batch} & {n for batch in other for n in batch}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sharded(DataLoader(Stream(), batch_size=2)), "let its __iter__ give itertools.islice"),
        (lambda: sharded(iter([1]), batch_size=2), "let its __iter__ give itertools.islice"),
        (lambda: sharded(DataLoader(NUMBERS, batch_size=None)), "batch_size=None"),
        (lambda: sharded(reproducible(DataLoader(NUMBERS, batch_size=2))), r"write reproducible\(sharded\(loader\)\)"),
        (lambda: sharded(sharded(NUMBERS, batch_size=2)), "a rank's share already"),
        (lambda: sharded(reproducible(sharded(NUMBERS, batch_size=2))), "a rank's share already"),
        (
            lambda: sharded(DataLoader(NUMBERS, sampler=DistributedSampler(NUMBERS, 2, 0))),  # type: ignore[arg-type]
            "leave the sampler out",
        ),
        (lambda: sharded(type("Own", (DataLoader,), {})(NUMBERS)), "and not a Own"),
        (lambda: sharded(DataLoader(NUMBERS, batch_sampler=Buckets(4)), per_rank=True), "a Buckets says itself"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(make: Callable[[], object], said: str) -> None:
    """With what to write."""
    with pytest.raises(WorkloadError, match=said):
        make()


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: sharded(NUMBERS), TypeError, r"give a DataLoader, or sharded\(dataset, batch_size=32\)"),
        (lambda: sharded(DataLoader(NUMBERS), batch_size=2, shuffle=True), TypeError, "and batch_size, shuffle: give"),
        (lambda: sharded(together(NUMBERS)), TypeError, "give a DataLoader"),
        (lambda: sharded(DataLoader(NUMBERS), rank=1), TypeError, "give rank and ranks together"),
        (
            lambda: sharded(DataLoader(NUMBERS), rank=2, ranks=2),
            ValueError,
            "of ranks=2 it is a number from 0 to 1",
        ),
        (lambda: sharded(DataLoader(NUMBERS), rank=0, ranks=0), ValueError, "ranks=0: it is a whole number from 1"),
        (lambda: sharded(DataLoader(NUMBERS), seed=1.5), ValueError, "seed=1.5"),  # type: ignore[arg-type]
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Callable[[], object], kind: type[Exception], said: str) -> None:
    """With their names."""
    with pytest.raises(kind, match=said):
        make()


def test_place_is_that_which_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before there is a process group, and also if it is said only after the loader was made."""
    loader = sharded(NUMBERS, batch_size=8)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)

    assert own_rank() == (1, 2)
    assert numbers(loader)[0] == [1, 3, 5, 7]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_resumed_in_the_middle_of_a_pass(tmp_path: Path, workers: int) -> None:
    """With the weights of one that was not interrupted, to the last bit."""

    def make() -> Supervised:
        model = linear()
        loader = sharded(diabetes(), batch_size=64, shuffle=True, num_workers=workers, rank=1, ranks=2)
        return Supervised(model, sgd(model), torch.nn.MSELoss(), loader)

    @on(Phase.BATCH_END)
    def leave(state: Any) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 10 else None

    undisturbed = make()
    run(start(undisturbed, epochs=3, seed=0))
    run(start(make(), epochs=3, seed=0), [checkpoint(tmp_path), leave])
    work = make()
    state = restore(tmp_path, work)
    assert (state.epoch, state.batch, len(state.notes)) == (1, 3, workers)  # what workers may draw is noted
    run(state, [checkpoint(tmp_path), leave])

    assert torch.equal(weights_of(work.model), weights_of(undisturbed.model))
