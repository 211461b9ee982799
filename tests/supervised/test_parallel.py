"""`Supervised(parallel=…)`: ranks that are found, and train as one process does on the union of their batches."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fsm_train import (
    Phase,
    State,
    Supervised,
    WorkloadError,
    ablate,
    evaluate,
    find_lr,
    iterate,
    on,
    run,
    sharded,
    start,
)
from fsm_train.callbacks import accumulate, early_stopping, parallel, skip_nonfinite
from fsm_train.data.generators import seed_of_rank
from fsm_train.data.own_rank import own_rank
from fsm_train.supervised.parallel import with_agree
from fsm_train.supervised.reduction import average_statistics, broadcast_buffers, reduce_gradients, sparse_parameters
from fsm_train.testing import differences
from tests.diabetes_training import batches, weights_of, workload
from tests.forked import forked
from tests.models import Noisy, diabetes, digits
from tests.players_training import gan

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def shares(rank: int | None, *sizes: int, skip: int = 0) -> list[Any]:
    """Every second patient of each batch on each of two ranks; None for the union."""
    return [
        batch if rank is None else tuple(part[rank::2] for part in batch)
        for batch in batches(*(sizes or (8, 7, 6)), skip=skip)
    ]


def make(rank: int | None, **settings: Any) -> Supervised:
    return workload(shares(rank), valid=shares(rank, 8, 6, skip=30), **settings)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Without another word than `parallel`: what is decided, the weights, what is evaluated and found."""

    def work(rank: int | None) -> Any:
        model = make(rank, parallel="ddp")
        found = find_lr(start(model, epochs=1, seed=0), steps=5)
        final = run(start(model, epochs=4, seed=0), [early_stopping(patience=2), skip_nonfinite()])
        seen = [state.step for state in iterate(start(make(rank, parallel="ddp"), epochs=1), at=[Phase.EPOCH_END])]
        table = ablate(
            lambda seed: start(make(rank, parallel="ddp"), epochs=1, seed=seed),
            [accumulate(2)],
            seeds=(0,),
            progress=False,
        )
        measured = [*found.losses, *evaluate(model).values(), *(row.mean for row in table.rows)]
        return attrs.evolve(final, workload=None), weights_of(model.model), measured, seen, final.workload is model

    (one, weights, measured, seen, is_model), (other, *others) = forked(2, tmp_path, work)
    assert not list(differences(one, other))
    assert torch.equal(weights, others[0])
    assert (measured, seen) == (others[1], others[2])
    assert is_model

    alone, union, as_measured, as_seen, _ = work(None)
    assert (one.epoch, one.step, one.samples, seen) == (alone.epoch, alone.step, alone.samples, as_seen)
    torch.testing.assert_close(weights, union, rtol=0, atol=1e-6)
    assert measured == pytest.approx(as_measured, rel=1e-4)


def test_the_callback_says_the_same(tmp_path: Path) -> None:
    """`parallel("ddp")` makes the ranks agree too."""

    def work(rank: int) -> Any:
        model = make(rank)
        run(start(model, epochs=2, seed=0), [parallel("ddp")])
        said = make(rank, parallel="ddp")
        run(start(said, epochs=2, seed=0))
        return weights_of(model.model), weights_of(said.model)

    (one, said), (other, _) = forked(2, tmp_path, work)
    assert torch.equal(one, said)
    assert torch.equal(one, other)


def test_a_group_without_a_word_is_refused(tmp_path: Path) -> None:
    """Each would train a model of its own, unless that is meant."""

    def work(rank: int) -> Any:
        run(start(make(rank, parallel=False), epochs=1))
        try:
            run(start(make(rank), epochs=1))
        except WorkloadError as error:
            return str(error)
        return ""

    for rank, said in enumerate(forked(2, tmp_path, work)):
        assert said.startswith(f"this is rank {rank} of a process group of 2, and each would train a model of its own")


def test_only_rank_0_writes(tmp_path: Path) -> None:
    """A log of each rank says the same, to the byte but for the time it took."""

    def work(rank: int) -> Any:
        log = tmp_path / f"only-{rank}.jsonl"
        run(start(make(rank, parallel="ddp"), epochs=1, seed=0), log=log)
        run(start(make(rank, parallel="ddp"), epochs=1, seed=0), log=tmp_path / "run-{rank}.jsonl")
        return log.exists()

    assert forked(2, tmp_path, work) == [True, False]
    lines = [(tmp_path / f"run-{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    assert len(lines[0]) == len(lines[1]) > 3


def test_only_rank_0_warns_as_long_as_there_is_a_group(tmp_path: Path) -> None:
    """What follows in the same process, such as an evaluation without the others, is heard again; errors always are."""

    def work(rank: int) -> Any:
        heard, logger = [], logging.getLogger("fsm_train")
        handler = logging.Handler()
        handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        for name in ("one", "another"):
            make(rank, parallel="ddp")
            logger.warning("%s in the group", name)
        logger.error("an error")
        dist.destroy_process_group()
        logger.warning("after the group")
        workload(parallel="ddp")
        return heard, logger.filters

    (one, _), (other, filters) = forked(2, tmp_path, work)
    assert one == ["one in the group", "another in the group", "an error", "after the group"]
    assert other == ["an error", "after the group"]
    assert filters == []


def test_windows_are_reduced_once_before_each_step(tmp_path: Path) -> None:
    """And not in each backward; the parameters of a loss, which torch's wrapper has not, are reduced too."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return ((self.factor * output - target) ** 2).mean()

    def work(rank: int | None, windows: bool = True) -> Any:
        loss_fn = Scaled()
        made = workload()
        optimizer = torch.optim.SGD([*made.model.parameters(), *loss_fn.parameters()], lr=0.05)
        model = Supervised(made.model, optimizer, loss_fn, shares(rank, 8, 7, 6, 5), parallel="ddp")
        reduced, all_reduce = [], dist.all_reduce
        dist.all_reduce = lambda tensor, *args, **settings: (
            reduced.append(tensor.numel()),
            all_reduce(tensor, *args, **settings),
        )
        try:
            run(start(model, epochs=1, seed=0), [accumulate(2)] if windows else [])
        finally:
            dist.all_reduce = all_reduce
        return weights_of(model.model), loss_fn.factor.item(), reduced

    for windows in (True, False):
        (weights, factor, reduced), (others, as_factor, _) = forked(
            2, tmp_path / str(windows), lambda rank, windows=windows: work(rank, windows)
        )
        assert torch.equal(weights, others)
        assert factor == as_factor
        assert len(reduced) == (2 if windows else 4)
        alone, alone_factor, _ = work(None, windows)
        torch.testing.assert_close(weights, alone, rtol=0, atol=1e-6)
        assert factor == pytest.approx(alone_factor, abs=1e-6)


class Mean(nn.Module):
    """Takes the mean of its last inputs away, which is in a buffer: where ranks have other ones, they learn others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 1)
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + inputs.mean(dim=0)
        output: torch.Tensor = self.layer(inputs - self.mean)
        return output


def by_hand(model: nn.Module, data: list[Any], window: int, **settings: Any) -> None:
    """One epoch of windows with torch's wrapper alone, as its documentation writes them."""
    wrapped = DistributedDataParallel(model, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for i, (inputs, target) in enumerate(data, start=1):
        last = i % window == 0 or i == len(data)
        in_window = window if i <= len(data) // window * window else len(data) % window
        with contextlib.nullcontext() if last else wrapped.no_sync():
            (nn.functional.mse_loss(wrapped(inputs), target) / in_window).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("settings", [{}, {"broadcast_buffers": False}], ids=["shared", "own"])
@pytest.mark.filterwarnings("ignore:.*broadcast_buffers")
def test_buffers_in_windows_are_shared_where_torch_shares_them(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Before the first forward pass of each window, and nowhere if that is said."""

    def work(rank: int) -> Any:
        torch.manual_seed(0)
        expected = Mean()
        model, data = deepcopy(expected), shares(rank, 8, 8, 8, 8, 8)
        by_hand(expected, data, 2, **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        parallel = {"kind": "ddp", **settings}
        last = []

        @on(Phase.TEARDOWN)
        def before_its_end(state: State) -> None:
            last.append(model.mean.clone())

        made = Supervised(model, optimizer, nn.MSELoss(), data, parallel=parallel)
        run(start(made, epochs=1), [accumulate(2), before_its_end])
        return last[0], expected.mean, weights_of(model), weights_of(expected)

    (own, as_own, weights, expected), (other, as_other, others, _) = forked(2, tmp_path, work)
    assert torch.equal(own, as_own)
    assert torch.equal(other, as_other)
    assert torch.equal(weights, others)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


def test_a_backward_of_ones_own_is_reduced(tmp_path: Path) -> None:
    """Before the step, since torch's wrapper sees no loss.backward()."""

    def backward(loss: torch.Tensor, parameters: Any) -> None:
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def work(rank: int | None) -> Any:
        model = workload(shares(rank, 8, 6), backward=backward, parallel="ddp")
        run(start(model, epochs=2, seed=0))
        return weights_of(model.model)

    one, other = forked(2, tmp_path, work)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, work(None), rtol=0, atol=1e-6)


def test_players_are_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group, with or without the callback that says what the ranks are; and with a share before there is one."""
    sentence = (
        "this is process {} of 2, and the players 'D', 'G' take turns: ranks weigh losses and metrics by what a batch "
        "counts, not by whose turn it is. Train players in one process, started by python and not by torchrun"
    )

    def refused(*callbacks: Any, **settings: Any) -> str:
        with pytest.raises(WorkloadError) as raised:
            run(start(gan().dcgan(**settings), epochs=1), callbacks)
        return str(raised.value)

    def work(rank: int) -> Any:
        return [refused(), refused(parallel("ddp"))]

    assert forked(2, tmp_path, work) == [[sentence.format(rank)] * 2 for rank in range(2)]
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert refused(train=sharded(Noisy(digits(128)), batch_size=32)) == sentence.format(1)


def test_a_closure_is_refused(tmp_path: Path) -> None:
    """A line search decides by the loss of one rank."""

    def work(rank: int) -> str:
        try:
            run(start(make(rank, closure=True, parallel="ddp"), epochs=1))
        except WorkloadError as error:
            return str(error)
        return ""

    assert all("closure" in said for said in forked(2, tmp_path, work))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("horovod", 'write parallel="ddp" or "fsdp", or its settings in a mapping'),
        (3, 'write parallel="ddp" or "fsdp", or its settings in a mapping'),
        ("dp", "parallel='dp': write"),
        ({"kind": "dp"}, 'write parallel="ddp"'),
        ({"static": True}, "there is no such setting. There are kind, agree"),
        ({"agree": "often"}, "'epoch', 'phase' or 'never'"),
        ({"seconds": 0}, "positive"),
        ({"interrupts_every": 0}, "interrupts_every"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: Any, said: str) -> None:
    """Also where there is one process."""
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        workload(parallel=given)


@pytest.mark.parametrize(
    ("parallel", "agree", "said"),
    [
        ("ddp", "often", "agree='often': 'epoch', 'phase' or 'never'"),
        (None, "phase", "agree='phase' is for ranks that train together"),
        (False, "phase", "agree='phase' is for ranks that train together"),
        ({"agree": "epoch"}, "phase", "leave one of them out"),
    ],
)
def test_agree_that_makes_no_sense_is_refused(parallel: Any, agree: Any, said: str) -> None:
    """Beside `parallel` it is its own keyword, and the same as in its mapping."""
    with pytest.raises(ValueError, match=said):
        workload(parallel=parallel, agree=agree)
    assert with_agree({"agree": "phase", "seconds": 9}, "phase") == {"agree": "phase", "seconds": 9}
    run(start(workload(parallel="fsdp", agree="phase"), epochs=1))


@pytest.mark.parametrize("given", ["ddp", {"static_graph": True, "agree": "phase"}, False, None])
def test_one_process_trains_as_without_it(given: Any) -> None:
    """The same script runs under python."""
    plain, once = workload(), workload(parallel=given)
    for work in (plain, once):
        run(start(work, epochs=2, seed=0))
    assert torch.equal(weights_of(plain.model), weights_of(once.model))


def test_ranks_have_seeds_of_their_own() -> None:
    """So that they drop out and augment differently; rank 0 draws what one process draws."""
    seeds = [seed_of_rank(5, rank) for rank in range(8)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_reduction_of_gradients_of_each_kind() -> None:
    """Of one rank nothing changes: dense, sparse, missing, and two dtypes."""
    torch.manual_seed(0)
    embedding, half = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1).to(torch.float64)
    model = nn.ModuleList([nn.Linear(2, 3), embedding, half, nn.Embedding(4, 2, sparse=True)])
    model[0].weight.grad = torch.randn(3, 2)
    half.weight.grad = torch.randn(1, 2, dtype=torch.float64)
    embedding(torch.tensor([1, 1, 4])).sum().backward()
    before = {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}

    reduce_gradients([*model.parameters()], sparse_parameters([model]), 1)

    after = {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}
    assert torch.equal(after.pop("3.weight"), torch.zeros(4, 2))  # sparse ones are not asked whether a rank has them
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.usefixtures("alone")
def test_place_of_a_process_is_that_in_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the environment says something else, as that of a job of several groups may."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_rank() == (0, 1)


@pytest.mark.usefixtures("alone")
def test_statistics_of_batch_norm_are_means_over_batches() -> None:
    """Of one rank they stay; a norm without statistics, and one that had no batch, are left alone."""
    norms = [nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)]
    norms[0](torch.arange(12.0).view(4, 3))
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]

    average_statistics(norms)

    for norm, buffers in zip(norms, before, strict=True):
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in norm.named_buffers())


def test_part_of_the_data_without_a_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before there is a process group: each process would train on its part alone."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    part = sharded(diabetes(), batch_size=64)

    with pytest.raises(WorkloadError, match="this is process 1 of 2, and trains with its part of the data"):
        run(start(workload(part), epochs=1))
    assert run(start(workload(part, parallel=False), epochs=1)).step == 7


def test_buffers_are_those_of_rank_0(tmp_path: Path) -> None:
    """Counters and statistics, each in its own dtype."""

    def work(rank: int) -> Any:
        norm = nn.BatchNorm1d(3)
        norm.running_mean.fill_(float(rank))  # type: ignore[union-attr]
        norm.num_batches_tracked.fill_(rank + 7)  # type: ignore[union-attr]
        broadcast_buffers([norm])
        return norm.running_mean, int(norm.num_batches_tracked)  # type: ignore[arg-type]

    for mean, batches_tracked in forked(2, tmp_path, work):
        assert torch.equal(mean, torch.zeros(3))
        assert batches_tracked == 7
