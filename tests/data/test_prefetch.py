"""Prefetching: what is fetched when, and that a training is the same with it as without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fsm_train import Phase, Supervised, WorkloadError, restore, run, start
from fsm_train.callbacks import checkpoint, validate_every
from fsm_train.data import prefetch, reproducible
from fsm_train.data.prefetch import CudaStreamCopier, Prefetcher, SyncCopier, copier_for, prefetch_obstacle
from tests.diabetes_training import batches, net, trained, workload
from tests.models import Noisy, digits, leave_after, network, same_weights, sgd

CPU = torch.device("cpu")
DATA = batches(8, 8, 8, 8)


class Noting:
    """A copier that writes down what it is asked for, and whose copies are under way until they are waited for."""

    def __init__(self, did: list[str]) -> None:
        self.did = did

    def copy(self, batch: Any) -> Any:
        self.did.append(f"copy {batch[0]}")
        return batch, True

    def wait(self, batch: Any) -> None:
        self.did.append(f"wait {batch[0]}")


def source(did: list[str], items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        did.append(f"fetch {item}")
        if isinstance(item, Exception):
            raise item
        yield item, "target"


# ------------------------------------------------------------------------------------------ one pass


def test_a_batch_is_fetched_and_copied_before_its_turn() -> None:
    """Before a batch is given away it is waited for, and the copy of the next one has begun after that."""
    did: list[str] = []
    for inputs, _ in Prefetcher(source(did, "abc"), Noting(did), ahead=True):
        did.append(f"train {inputs}")

    assert did == [
        *("fetch a", "copy a", "wait a", "fetch b", "copy b", "train a"),
        *("wait b", "fetch c", "copy c", "train b"),
        *("wait c", "train c"),
    ]


def test_without_looking_ahead_each_batch_comes_at_its_turn() -> None:
    """It is copied beside what is computed all the same."""
    did: list[str] = []
    for inputs, _ in Prefetcher(source(did, "ab"), Noting(did), ahead=False):
        did.append(f"train {inputs}")

    assert did == ["fetch a", "copy a", "wait a", "train a", "fetch b", "copy b", "wait b", "train b"]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_pass_that_is_over_stays_over(ahead: bool) -> None:
    """As iterators do."""
    prefetcher = Prefetcher(source([], "a"), Noting([]), ahead=ahead)

    assert [next(prefetcher, None) for _ in range(3)] == [("a", "target"), None, None]
    assert list(Prefetcher(iter(()), Noting([]), ahead=ahead)) == []


@pytest.mark.parametrize("ahead", [True, False])
def test_what_the_loader_raises_comes_at_its_turn(ahead: bool) -> None:
    """The batch before it is trained, and the original exception comes out, with where it was raised."""
    prefetcher = Prefetcher(source([], ["a", ZeroDivisionError("of all things")]), Noting([]), ahead=ahead)

    assert next(prefetcher) == ("a", "target")
    with pytest.raises(ZeroDivisionError, match="of all things") as caught:
        next(prefetcher)
    assert "source" in [frame.name for frame in caught.traceback]


def test_batch_that_is_no_pair_is_refused_at_its_turn() -> None:
    """In the sentence that it is always refused with."""
    prefetcher = Prefetcher(iter([("a", "b"), 3]), Noting([]), ahead=True)

    next(prefetcher)
    with pytest.raises(WorkloadError, match="the loader gave a int"):
        next(prefetcher)


# ----------------------------------------------------------------------------- who may be looked into


class Mine(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(torch.randint(10, (10,)).tolist())


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.zeros(10, 1))


class Stateful(DataLoader[Any]):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


TEN = TensorDataset(torch.zeros(10, 1))


def loader(data: Any = TEN, **settings: Any) -> DataLoader[Any]:
    return DataLoader(data, **{"num_workers": 1, **settings})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([1], None),
        ((1,), None),
        (loader(), None),
        (loader(shuffle=True, batch_size=3), None),
        (loader(shuffle=True, batch_size=None), None),
        (loader(sampler=WeightedRandomSampler([1.0] * 10, 10)), None),
        (reproducible(loader(shuffle=True)), None),
        (reproducible(loader(shuffle=True, batch_size=None)), None),
        (loader(shuffle=True, num_workers=0), "in this process .num_workers=0., and may draw random numbers"),
        (loader(shuffle=True, generator=torch.Generator()), "it has a generator of its own"),
        (loader(sampler=RandomSampler(TEN, generator=torch.Generator())), "it has a generator of its own"),
        (loader(sampler=Mine()), "it is unknown what a Mine draws when it is asked for a batch"),
        (loader(batch_sampler=BatchSampler(Mine(), 2, False)), "it is unknown what a Mine draws"),
        (loader(Stream()), "it is unknown what a _InfiniteConstantSampler draws"),
        (Stateful(TEN, num_workers=1), "the place of the Stateful is saved, and would be one too far"),
        (range(3), "it is unknown what a range draws, or does, when a batch is fetched"),
    ],
)
def test_who_may_be_looked_into(data: Any, why: str | None) -> None:
    """Only where it draws nothing in this process, and no place that is saved moves by it."""
    found = prefetch_obstacle(data)

    assert (found is None) == (why is None), found
    if why is not None:
        with pytest.raises(WorkloadError, match=f"no batch of train can be fetched before its turn: .*{why}"):
            copier_for(CPU, True, data, None)


@pytest.mark.parametrize(
    "data", [loader(shuffle=True, batch_size=3), loader(sampler=WeightedRandomSampler([1.0] * 10, 10))]
)
def test_fetching_from_them_draws_nothing(data: DataLoader[Any]) -> None:
    """From the first batch to the end of the pass, no generator of this process moves."""
    under_way = iter(data)
    before = torch.get_rng_state()

    assert list(under_way) != []

    assert torch.equal(before, torch.get_rng_state())


def test_on_the_cpu_batches_come_as_they_come() -> None:
    """Unless it is asked for; a split of one's own is never done before its turn."""
    assert copier_for(CPU, None, DATA, None) is None
    assert copier_for(CPU, False, DATA, None) is None
    assert isinstance(copier_for(CPU, True, DATA, None), SyncCopier)
    with pytest.raises(WorkloadError, match="a split of one's own may draw random numbers"):
        copier_for(CPU, True, DATA, lambda batch: batch)


# ------------------------------------------------------------------------------------ the same training


def train(ahead: bool, epochs: int = 2, **settings: Any) -> Supervised:
    """With augmentation and shuffling in workers, and dropout in the model."""
    data = digits(96)
    torch.manual_seed(3)
    train_loader = DataLoader(Noisy(data), batch_size=16, shuffle=True, num_workers=1)
    valid = DataLoader(data, batch_size=32, shuffle=True, num_workers=1)
    model = network()
    work = Supervised(model, sgd(model), nn.CrossEntropyLoss(), train_loader, valid, ahead=ahead)
    run(start(work, epochs=epochs, seed=0), **settings)
    return work


def test_training_is_the_same_bit_for_bit() -> None:
    """With dropout, augmentation in workers, and a validation in the middle of the epoch."""
    ours = train(True, callbacks=[validate_every(steps=4)])

    assert same_weights(ours.model, train(False, callbacks=[validate_every(steps=4)]).model)


@pytest.mark.parametrize("iteration", range(1, 9))
def test_batch_that_waits_is_neither_lost_nor_counted(iteration: int) -> None:
    """Left after any batch and gone on with in this process, the training and its counters are the same."""
    expected = trained([], DATA, model=net(), valid=DATA[:2], epochs=2)
    work = workload(DATA, model=net(), valid=DATA[:2], ahead=True)

    suspended = run(start(work, epochs=2), [leave_after(iteration)])
    final = run(suspended, [])

    assert (suspended.iteration, suspended.samples) == (iteration, 8 * iteration)
    assert (final.iteration, final.samples) == (8, 64)
    assert same_weights(work.model, expected.model)
    assert final.metrics == expected.final.metrics


@pytest.mark.parametrize("iteration", [1, 3, 4, 6])
def test_batch_that_waits_is_fetched_again_from_a_checkpoint(iteration: int, tmp_path: Path) -> None:
    """In a workload that was made anew, shuffled by workers."""

    def fresh() -> Supervised:
        model = net()
        data = TensorDataset(*(torch.cat(parts) for parts in zip(*DATA, strict=True)))
        loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=1)
        return Supervised(model, sgd(model), nn.MSELoss(), loader, ahead=True)

    undisturbed, left, work = fresh(), fresh(), fresh()
    expected = run(start(undisturbed, epochs=2, seed=0))
    run(start(left, epochs=2, seed=0), [checkpoint(str(tmp_path)), leave_after(iteration)])
    final = run(restore(tmp_path, work), [checkpoint(str(tmp_path))])

    assert same_weights(work.model, undisturbed.model)
    assert (final.iteration, final.samples, final.metrics) == (8, 64, expected.metrics)


def test_trouble_after_the_last_step_is_nobodys_trouble() -> None:
    """What a batch raises that is never trained is never raised."""
    inputs, target = DATA[0]
    data = [(inputs, target), (inputs, target), "no pair"]

    final = run(start(workload(data, ahead=True), max_steps=2))

    assert final.phase is Phase.DONE
    with pytest.raises(WorkloadError, match="the loader gave a str") as caught:
        run(start(workload(data, ahead=True), max_steps=3))
    assert "batch 2, step 2" in caught.value.__notes__[0]


# --------------------------------------------------------------------------------------- side stream


class PretendedStream:
    def __init__(self, name: str, did: list[str]) -> None:
        self.name, self.did = name, did

    def wait_stream(self, other: PretendedStream) -> None:
        self.did.append(f"{self.name} waits for {other.name}")


def test_copies_are_made_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What computes waits for the copies, and keeps their memory; what is there already is left alone."""
    did: list[str] = []
    computing, original = PretendedStream("computing", did), torch.Tensor.to

    @contextlib.contextmanager
    def on_stream(stream: PretendedStream) -> Iterator[None]:
        did.append(f"on {stream.name}")
        yield
        did.append(f"off {stream.name}")

    def to(tensor: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        did.append(f"copy {tuple(tensor.shape)}")
        return original(tensor, *args, **settings)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: PretendedStream("copying", did))
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, s: did.append(f"{tuple(tensor.shape)}: {s.name}"))
    copier = copier_for(torch.device("cuda"), None, DATA, None)
    assert isinstance(copier, CudaStreamCopier)
    copier.device = torch.device("meta")  # a device that any machine has

    batch, under_way = copier.copy((torch.zeros(2, 3), [torch.zeros(2)]))
    copier.wait(batch)

    assert under_way
    assert [tensor.device.type for tensor in prefetch.tensors(batch)] == ["meta", "meta"]
    assert did == [
        *("on copying", "copy (2, 3)", "copy (2,)", "off copying"),
        *("computing waits for copying", "(2, 3): computing", "(2,): computing"),
    ]
    assert copier.copy(batch) == (batch, False)
