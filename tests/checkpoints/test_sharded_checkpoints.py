"""Checkpoints of a model that ranks share out: each rank writes its pieces, and any number of ranks read them."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fsm_train import Phase, State, Supervised, Transition, extend, on, replay, restore, run, start
from fsm_train.callbacks import accumulate, checkpoint, ema, restore_best
from fsm_train.checkpoints.manifest import verify_all
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.supervised.shares import is_shared, whole
from tests.checkpoints.comparison import differences_anywhere
from tests.checkpoints.ranks_training import RankSpec
from tests.diabetes_training import batches, workload
from tests.forked import forked
from tests.how_long import step_through

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

if dist.is_available():
    import torch.distributed.checkpoint as dcp  # once, and not in each process
    import torch.distributed.fsdp


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


@pytest.mark.parametrize(
    ("accumulates", "thorough"),
    [(3, False), *(pytest.param(batches, True, marks=pytest.mark.long(alone=True)) for batches in (1, 3))],
)
def test_resumed_at_any_boundary_it_ends_the_same(accumulates: int, thorough: bool, tmp_path: Path) -> None:
    """To the last bit on each rank: in open windows, in validations, in mid-epoch, with an average and the best."""

    def work(rank: int) -> list[str]:
        spec = RankSpec(rank, parallel="fsdp", optimizer=adam, accumulates=accumulates, length=32)
        return differences_anywhere(spec, tmp_path, step_through(8) if thorough else 11)

    assert forked(2, tmp_path / "group", work) == [[], []]


# ------------------------------------------------------------------------------------------- other ranks


def net() -> nn.Module:
    """Layers of odd sizes, and two names for one parameter; batch norm has buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 1))
    model[4].weight2 = model[4].weight
    return model


def make(rank: int, ranks: int, parallel: Any = "fsdp", model: nn.Module | None = None) -> Supervised:
    shares = [tuple(part[rank::ranks] for part in batch) for batch in batches(16, 16, 12)]
    model = net() if model is None else model
    return workload(shares, model=model, optimizer=lambda _: adam, valid=shares[:1], parallel=parallel)


def wholly(work: Supervised) -> dict[str, torch.Tensor]:
    """By name, all that is to come back bit for bit, each as a whole tensor: all ranks ask for it."""
    kept = work.carried_over
    averages = {**kept.saved_averages, **{name: average.state() for name, average in kept.averages.items()}}
    everything = {
        "model": work.model.state_dict(),
        "optimizer": work.optimizer.state_dict()["state"],
        "gradients": {i: p.grad for i, p in enumerate(work.parameters) if p.grad is not None},
        "averages": averages,
        "weights": {name: each.state() for name, each in kept.weights.items()},
    }
    return {name: whole(tensor.detach()).clone() for name, tensor in tensors_in("", everything)}


def tensors_in(path: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inside in value.items():
            yield from tensors_in(f"{path}/{key}", inside)
    elif isinstance(value, list):
        for i, inside in enumerate(value):
            yield from tensors_in(f"{path}/{i}", inside)


def others(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of what differs."""
    same = {name for name in one.keys() & other.keys() if torch.equal(one[name], other[name])}
    return sorted((one.keys() | other.keys()) - same)


def callbacks(folder: Path, **settings: Any) -> list[Any]:
    return [ema(0.9), accumulate(2), restore_best(), checkpoint(folder, monitor="valid_loss", last=9, **settings)]


def saved_on(ranks: int, folder: Path) -> dict[str, torch.Tensor]:
    """Train two epochs with checkpoints of them; what the last one has to give back."""

    def train(rank: int) -> Any:
        seen: dict[str, Any] = {}

        @on(Phase.EPOCH_END, memory=0)
        def look(state: Any, epochs: int) -> Transition:
            if epochs == 1:
                seen.update(wholly(work))
            return Transition(commands=(SaveCheckpoint(str(folder), f"at-{epochs + 1}"),), memory=epochs + 1)

        work = make(rank, ranks)
        run(start(work, epochs=2, seed=0), [*callbacks(folder), look])
        return seen

    return forked(ranks, folder.parent / f"group of {ranks}", train)[0] if ranks > 1 else train(0)  # type: ignore[no-any-return]


def test_saved_on_two_it_is_restored_on_one_two_and_four(tmp_path: Path) -> None:
    """Weights, moments, averages and copies to restore bit for bit, and DCP reads the same; all go on from there.

    On one process the model is whole; with DDP it is whole on each of two.
    """
    saved = saved_on(2, tmp_path / "saved")
    path = tmp_path / "saved" / "at-2"
    assert any("exp_avg" in name for name in saved)
    assert any("averages/ema" in name for name in saved)
    assert any(name.startswith("/weights") for name in saved)

    def go_on(rank: int, ranks: int, parallel: Any = "fsdp") -> Any:
        work = make(rank, ranks, parallel)
        state = restore(path, work)
        restored, shared = wholly(work), [is_shared(parameter) for parameter in work.model.parameters()]
        final = run(state, callbacks(tmp_path / f"on {ranks} {parallel}"))
        return restored, {*shared}, state.notes, final.metrics, wholly(work)

    ends = {
        1: [go_on(0, 1)],
        2: forked(2, tmp_path / "2", lambda rank: go_on(rank, 2)),
        4: forked(4, tmp_path / "4", lambda rank: go_on(rank, 4)),
        "ddp": forked(2, tmp_path / "ddp", lambda rank: go_on(rank, 2, "ddp")),
    }
    for ranks, of_ranks in ends.items():
        for restored, shared, notes, metrics, at_end in of_ranks:
            assert others(saved, restored) == [], ranks
            assert shared == {ranks in (2, 4)}
            assert bool(notes) is (ranks in (1, 4)), notes
            assert metrics == of_ranks[0][3]
            assert not others(at_end, of_ranks[0][4]) or ranks == "ddp"  # whose buffers are of each rank
    assert "it was 2 and is 1" in ends[1][0][2][0]

    with_dcp = {name: torch.zeros_like(parameter) for name, parameter in net().named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # DCP says that there is no group
        dcp.load({"modules": {"model": {"values": with_dcp}}}, checkpoint_id=path, no_dist=True)
    assert all(torch.equal(value, saved[f"/model/{name}"]) for name, value in with_dcp.items())


@pytest.mark.parametrize("saver", ["alone", pytest.param("ddp", marks=pytest.mark.long(alone=True))])
def test_what_was_saved_of_a_whole_model_is_shared_out(saver: str, tmp_path: Path) -> None:
    """Of one process, or of two that each had all of it."""
    ranks = 1 if saver == "alone" else 2

    def train(rank: int) -> Any:
        work = make(rank, ranks, "ddp")
        run(start(work, epochs=1, seed=0), [checkpoint(tmp_path / "saved")])
        return wholly(work)

    def share_out(rank: int) -> Any:
        work = make(rank, 2)
        restore(tmp_path / "saved", work)
        moments = [state["exp_avg"] for state in work.optimizer.state.values()]
        return wholly(work), {*map(is_shared, moments)}

    saved = forked(ranks, tmp_path / "saving", train)[0] if ranks > 1 else train(0)
    for restored, shared in forked(2, tmp_path / "group", share_out):
        assert others(saved, restored) == []
        assert shared == {True}


# ------------------------------------------------------------------------------------- callbacks and logs


@pytest.mark.parametrize("beside", [True, pytest.param(False, marks=pytest.mark.long(alone=True))])
def test_sigterm_to_one_rank_suspends_all_and_their_logs_are_the_same(beside: bool, tmp_path: Path) -> None:
    """In mid-epoch, with the best and the last kept: what is resumed ends as the undisturbed, and its log replays."""
    folder, log = tmp_path / "saved", tmp_path / "run-{rank}.jsonl"
    parallel = {"kind": "fsdp", "interrupts_every": 1}
    settings = {"beside": beside, "every_steps": 1}

    def ends(rank: int) -> Any:
        @on(Phase.BATCH_END)
        def killed(state: State) -> None:
            if state.iteration == 4 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        expected = make(rank, 2, parallel)
        run(start(expected, epochs=3, seed=0), callbacks(tmp_path / "undisturbed"))
        left = run(start(make(rank, 2, parallel), epochs=3, seed=0), [*callbacks(folder, **settings), killed], log=log)
        dist.barrier()
        there = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
        work = make(rank, 2, parallel)
        run(restore(folder, work), callbacks(folder, **settings), log=log)
        divergence = replay(tmp_path / f"run-{rank}.jsonl", callbacks(folder, **settings)).divergence
        return left.phase, left.iteration, there, others(wholly(expected), wholly(work)), divergence

    of_ranks = forked(2, tmp_path / "group", ends)
    for phase, at, there, *rest in of_ranks:
        assert (phase, there[0], there[-1][13:], rest) == (Phase.SUSPENDED, "epoch-00001", "-suspended", [[], None])
        assert at in (4, 5)
    one, other = ((tmp_path / f"run-{rank}.jsonl").read_bytes() for rank in range(2))
    assert one == other
    assert all(not item.trouble for item in verify_all(tmp_path / "saved"))


def on_mesh(kind: str) -> tuple[nn.Module, Any]:
    """A model for four ranks on a mesh of two by two, and `parallel` for it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    if kind == "replicas":
        return model, {"kind": "fsdp", "mesh": mesh}
    parallelize_module(model, mesh["inner"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh["outer"])
    return model, "fsdp"


@pytest.mark.long(alone=True)
@pytest.mark.parametrize("kind", ["replicas", "tensor parallel"])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # whose output is a view
def test_shares_on_a_mesh_of_two_dimensions_are_whole_again(kind: str, tmp_path: Path) -> None:
    """Each share is written by one rank, also where two have the same, or both dimensions share out one of a tensor."""
    folder = tmp_path / "saved"

    def data(rank: int) -> list[Any]:
        of, each = (rank, 4) if kind == "replicas" else (rank // 2, 2)
        return [tuple(part[of::each] for part in batch) for batch in batches(16, 16, 16)]

    def mesh_work(rank: int) -> Supervised:
        model, parallel = on_mesh(kind)
        return workload(data(rank), model=model, optimizer=lambda _: adam, parallel=parallel)

    def train(rank: int) -> Any:
        expected, work = mesh_work(rank), mesh_work(rank)
        run(start(expected, epochs=2, seed=0), [ema(0.9)])
        run(start(work, epochs=1, seed=0), [ema(0.9), checkpoint(folder, every_steps=2)])
        run(restore(folder / "step-00000002", again := mesh_work(rank)), [ema(0.9), checkpoint(folder / "on")])
        final = extend(restore(folder / "on", last := mesh_work(rank)), epochs=1)
        end = wholly(last)
        run(final, [ema(0.9)])
        return others(wholly(work), wholly(again)), others(wholly(expected), wholly(last)), end

    ends = forked(4, tmp_path / "group", train)
    alone = workload(
        batches(16, 16, 16), model=nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)), optimizer=adam
    )
    restore(folder / "on", alone)
    for again, last, end in ends:
        assert (again, last) == ([], [])
        assert others(end, wholly(alone)) == []
    assert len([*(folder / "on" / "epoch-00001").glob("*.distcp")]) == (2 if kind == "replicas" else 4)
