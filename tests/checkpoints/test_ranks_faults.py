"""What fails on one rank while a checkpoint is written: all ranks know, and the older checkpoints stay."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import nn

from fsm_train import (
    CheckpointError,
    NoCheckpointError,
    Phase,
    State,
    Supervised,
    WorkloadError,
    iterate,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints.beside import NAME
from fsm_train.checkpoints.folder import Folder
from fsm_train.checkpoints.manifest import list_folder, verify_all
from fsm_train.supervised.shares import whole
from fsm_train.worlds.disagreement import PeerError
from tests.checkpoints.faulty_disk import FaultyDisk
from tests.diabetes_training import batches, sgd, weights_of, workload
from tests.forked import forked
from tests.how_long import of_all, step_through

if dist.is_available():
    import torch.distributed.fsdp  # once, and not in each process

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def shares(rank: int) -> list[Any]:
    return [tuple(part[rank::2] for part in batch) for batch in batches(8, 8, 8)]


def make(rank: int, kind: str = "ddp") -> Supervised:
    if kind == "ddp":
        return workload(shares(rank), parallel="ddp")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 1))
    return workload(shares(rank), model=model, optimizer=lambda _: sgd, parallel="fsdp")


def saves(folder: Path, **settings: Any) -> Any:
    """After each step; the last two stay."""
    return checkpoint(folder, every_epochs=None, every_steps=1, **settings)


def train(rank: int, folder: Path, kind: str = "ddp") -> tuple[State, torch.Tensor, list[str]]:
    """The end of a training of three steps, its weights, and its warnings."""
    work = make(rank, kind)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)
        beside = kind.endswith("beside")
        final = run(start(work, epochs=1), [saves(folder, beside=beside), *[ends_what_is_written] * beside])
    said = [str(warning.message) for warning in warned if issubclass(warning.category, RuntimeWarning)]
    return attrs.evolve(final, workload=None), whole_weights(work), said


@on(Phase.STEP_BEGIN)
def ends_what_is_written(state: State) -> None:
    """Wait for the save of the step before; one that is still under way has the next left out, on a busy machine."""
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join()


def whole_weights(work: Supervised) -> torch.Tensor:
    return torch.cat([whole(parameter.detach()).flatten() for parameter in work.model.parameters()])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


KINDS = pytest.mark.parametrize(
    ("kind", "faulty", "thorough"),
    [
        *(("ddp", 0, False), ("ddp", 1, False), ("fsdp, beside", 1, False)),
        *(
            pytest.param(kind, faulty, True, marks=pytest.mark.long(alone=True))
            for kind in ("ddp", "fsdp", "fsdp, beside")
            for faulty in (0, 1)
        ),
    ],
)


@KINDS
def test_a_call_of_the_disk_that_fails_for_one_is_a_note_on_all(
    kind: str, faulty: int, thorough: bool, tmp_path: Path
) -> None:
    """The training ends as the undisturbed one, and what is there is good; or no rank begins."""

    def faults(rank: int) -> list[Any]:
        undisturbed, calls = count_calls(rank, tmp_path / "undisturbed", faulty, kind)
        found: list[Any] = []
        step = step_through(calls // 4) if thorough else calls // 4
        step *= 1 if kind == "ddp" or not thorough else 8  # a write of each tensor is a call
        for at in range(3, calls, step):
            folder = tmp_path / str(at)
            final, weights, said = None, None, []
            with pytest.MonkeyPatch.context() as patched:
                full = OSError(errno.ENOSPC, "No space left on device")
                FaultyDisk(folder, full, patched, at=[at] if rank == faulty else [])
                try:
                    final, weights, said = train(rank, folder, kind)
                except CheckpointError as error:
                    found.append(str(error))
            if final is not None:
                assert torch.equal(weights, undisturbed), at
                assert all(not item.trouble for item in verify_all(folder)), at
                found.append((final.notes, said))
            dist.barrier()
            if rank == 0 and folder.is_dir():
                Folder(folder).close()  # which puts right what could not be
                assert not [name for name in names(folder) if name.startswith(".")], at
        return found

    one, other = forked(2, tmp_path / "group", faults, limit=300)
    assert one == other
    assert any(f"rank {faulty}: [Errno 28]" in str(each) for each in one)


def count_calls(rank: int, folder: Path, of: int, kind: str = "ddp") -> tuple[torch.Tensor, int]:
    """The weights of an undisturbed training, and how many calls of the disk it took on this rank."""
    with pytest.MonkeyPatch.context() as patched:
        disk = FaultyDisk(folder, OSError(), patched)
        _, weights, _ = train(rank, folder, kind)
    calls = torch.tensor([len(disk.calls)])
    dist.broadcast(calls, of)
    return weights, int(calls)


@KINDS
def test_a_rank_that_is_killed_while_it_saves_costs_nothing(
    kind: str, faulty: int, thorough: bool, tmp_path: Path
) -> None:
    """The other ends within seconds; both continue from the newest good checkpoint, and end as the undisturbed ones."""
    expected, calls = forked(2, tmp_path / "a", lambda rank: count_calls(rank, tmp_path / "undisturbed", faulty, kind))[
        0
    ]
    seed = random.SystemRandom().randrange(2**32)
    tried = of_all(25 if kind == "ddp" else 10, few=2) if thorough else 1
    for at in random.Random(seed).sample(range(calls // 4, calls), tried):
        folder = tmp_path / str(at)

        def dies(rank: int, folder: Path = folder, at: int = at) -> Any:
            with pytest.MonkeyPatch.context() as patched:
                FaultyDisk(folder, lambda: os.kill(os.getpid(), signal.SIGKILL), patched, at=[at] * (rank == faulty))
                return train(rank, folder, kind)[1]

        def goes_on(rank: int, folder: Path = folder) -> torch.Tensor:
            work = make(rank, kind)
            try:
                state = restore(folder, work)
            except NoCheckpointError:
                state = start(work, epochs=1)
            run(state, [saves(folder)])
            return whole_weights(work)

        ends = forked(2, tmp_path / f"{at} killed", dies)
        assert isinstance(ends[faulty], EOFError), (seed, at)
        assert isinstance(ends[1 - faulty], WorkloadError), (seed, at)
        assert all(torch.equal(end, expected) for end in forked(2, tmp_path / f"{at} on", goes_on)), (seed, at)
        assert not [name for name in names(folder) if name.startswith(".")], (seed, at)
        assert all(not item.trouble for item in verify_all(folder)), (seed, at)


def test_a_flipped_bit_of_one_rank_is_damage_for_all(tmp_path: Path) -> None:
    """All continue from the checkpoint before, of which rank 0 alone warns; the damaged one is refused by all."""
    folder = tmp_path / "saved"

    def flipped(rank: int) -> Any:
        undisturbed = train(rank, folder)[1]
        dist.barrier()
        if rank == 0:
            flip(folder / "step-00000003" / "rank-1.pt")
        dist.barrier()
        work = make(rank)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", RuntimeWarning)
            state = restore(folder, work)
        step = state.step
        run(state)
        said = [str(warning.message) for warning in warned]
        with pytest.raises(CheckpointError) as refused:
            restore(folder / "step-00000003", make(rank))
        return step, torch.equal(weights_of(work.model), undisturbed), said, str(refused.value)

    (step, same, said, refused), (*others, not_said, also) = forked(2, tmp_path / "group", flipped)
    assert [step, same] == others == [2, True]
    assert [f"{refused}: continuing from {folder / 'step-00000002'}"] == said
    assert not_said == []
    assert refused == also == f"{folder / 'step-00000003' / 'rank-1.pt'} is damaged: it does not match its checksum"
    assert [bool(item.trouble) for item in verify_all(folder)] == [True, False]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_rank_that_fails_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """The ranks no longer meet, so `on_failure` saves nothing, and says so; what was there before stays."""
    folder = tmp_path / "saved"

    def fails(rank: int) -> Any:
        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if rank == 1 and calls == 3:
                raise ArithmeticError("of rank 1")
            return nn.functional.mse_loss(output, target)

        calls = 0
        work = workload(shares(rank), loss_fn=loss, parallel="ddp")
        with (
            pytest.warns(RuntimeWarning, match="could not be written") as warned,
            pytest.raises((ArithmeticError, PeerError)) as raised,
        ):
            run(start(work, epochs=1), [saves(folder, on_failure=True)])
        return str(raised.value), [str(warning.message) for warning in warned]

    (peer, said), (own, also) = forked(2, tmp_path / "group", fails)
    assert own == "of rank 1"
    assert "rank 1 failed" in peer
    assert said == also
    assert "ranks that no longer meet" in said[0]
    assert names(folder) == ["step-00000001", "step-00000002"]
    assert all(not item.trouble for item in verify_all(folder))


@pytest.mark.parametrize("trouble", ["held", "in the way"])
def test_a_folder_that_rank_0_cannot_hold_is_an_error_of_all(trouble: str, tmp_path: Path) -> None:
    """Before the first batch, with the same sentence."""
    folder = tmp_path / "saved"
    held = Folder(folder) if trouble == "held" else folder.write_text("not a folder") and None

    def begins(rank: int) -> str:
        with pytest.raises(CheckpointError) as raised:
            train(rank, folder)
        return str(raised.value)

    one, other = forked(2, tmp_path / "group", begins)
    if held is not None:
        held.close()
    assert one == other
    assert str(folder) in one


@pytest.mark.parametrize("interrupted", [0, 1])
def test_ctrl_c_within_a_save_ends_all_ranks(interrupted: int, tmp_path: Path) -> None:
    """The other ends with it; what was begun is removed, and what was there before stays."""
    folder = tmp_path / "saved"

    def interrupt() -> None:
        raise KeyboardInterrupt

    def ends(rank: int) -> Any:
        _, calls = count_calls(rank, tmp_path / "undisturbed", interrupted)
        with pytest.MonkeyPatch.context() as patched:
            FaultyDisk(folder, interrupt, patched, at=[calls // 2] if rank == interrupted else [])
            train(rank, folder)

    raised = forked(2, tmp_path / "group", ends)

    assert isinstance(raised[interrupted], KeyboardInterrupt)
    assert isinstance(raised[1 - interrupted], PeerError)
    assert f"rank {interrupted} failed" in str(raised[1 - interrupted])
    Folder(folder).close()
    assert names(folder) == ["step-00000001"]
    assert not verify_all(folder)[0].trouble


def test_a_loop_that_all_ranks_leave_is_saved_by_all(tmp_path: Path) -> None:
    """With `on_failure`: that is no failure of one, so they meet, and all continue from there exactly."""
    folder = tmp_path / "saved"

    def leaves(rank: int) -> Any:
        undisturbed = train(rank, tmp_path / "undisturbed")[1]
        states = iterate(start(make(rank), epochs=1), [checkpoint(folder, on_failure=True)], at=[Phase.BATCH_END])
        for state in states:
            if state.step == 2:
                states.close()
        work = make(rank)
        state = restore(folder, work)
        step = state.step
        run(state)
        return step, torch.equal(weights_of(work.model), undisturbed), state.notes

    assert forked(2, tmp_path / "group", leaves) == [(2, True, ())] * 2
    assert list_folder(folder).checkpoints[0].ranks == 2
