"""A checkpoint of some ranks, restored on others: from the end of an epoch, with what is inexact in the notes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fsm_train import Supervised, WorkloadError, load_weights, restore, run, start
from fsm_train.callbacks import checkpoint, ema
from fsm_train.cli import main
from fsm_train.data.plain_generators import new_for_rank
from tests.diabetes_training import batches, linear, weights_of, workload
from tests.forked import forked

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

NEW = "share the data anew; {} from new generators, which follow from those of rank 0"
GONE = "share the data anew; what {} had alone is left out, such as its generators"


def make(rank: int, ranks: int) -> Supervised:
    shares = [tuple(part[rank::ranks] for part in batch) for batch in batches(8, 8, 8)]
    return workload(shares, valid=shares[:1], parallel="ddp")


def on(ranks: int, group: Path, work: Any) -> list[Any]:
    return forked(ranks, group, work) if ranks > 1 else [work(0)]


def save_on(ranks: int, folder: Path) -> torch.Tensor:
    """Train two epochs, saving at validations and at a step in the middle of each epoch; the weights."""

    def train(rank: int) -> torch.Tensor:
        work = make(rank, ranks)
        saves = checkpoint(folder, monitor="valid_loss", every_steps=2, last=9)
        epochs = checkpoint(folder / "epochs", name="epochs")
        run(start(work, epochs=2, seed=0), [saves, epochs, ema(0.9)])
        return weights_of(work.model)

    return on(ranks, folder.parent / f"group of {ranks}", train)[0]


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (2, 4)])
def test_other_ranks_go_on_from_the_end_of_an_epoch(before: int, now: int, tmp_path: Path) -> None:
    """To the end of an undisturbed training, to rounding. The notes, the same on all, say what is not as it was."""
    folder = tmp_path / "saved"
    undisturbed = save_on(before, folder)
    begins = f"the number of ranks: it was {before} and is {now}, and they "
    new = "ranks 2 to 3 draw" if now == 4 else "rank 1 draws"
    at_epoch = (begins + (NEW.format(new) if now > before else GONE.format("rank 1")),)
    at_validation = at_epoch + (
        ("the training metrics of the epoch: the batches of rank 1 are not in them",) if now < before else ()
    )

    def go_on(rank: int) -> Any:
        found = []
        for path in (folder / "epochs" / "epoch-00001", folder / "epoch-00001"):
            work = make(rank, now)
            state = restore(path, work)
            final = run(state, [ema(0.9), checkpoint(tmp_path / "on", every_seconds=1e-3)])
            found.append((state.notes, weights_of(work.model), torch.rand(()).item(), dict(final.history[0])))
        with pytest.raises(WorkloadError) as refused:
            restore(folder / "step-00000004", make(rank, now))
        return found, str(refused.value)

    ends = on(now, tmp_path / "group", go_on)
    for (at_end, at_valid), refused in ends:
        assert [at_end[0][: len(at_epoch)], at_valid[0][: len(at_validation)]] == [at_epoch, at_validation]
        assert "was saved on " in refused
        assert "in the middle of an epoch" in refused
        assert f"go on from the end of an epoch: restore('{folder}/epoch-0000" in refused
        for _, weights, _, _ in (at_end, at_valid):
            assert torch.equal(weights, ends[0][0][0][1])
            torch.testing.assert_close(weights, undisturbed, rtol=0, atol=1e-6)
    assert len({end[0][0][2] for end in ends}) == now  # what each draws next


def test_one_process_reads_a_checkpoint_of_several_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights, what is in the folder, and whether a byte of any rank is damaged."""
    folder = tmp_path / "saved"
    save_on(2, folder)

    loaded = load_weights(folder, linear(), which="best")
    assert (loaded["name"], loaded["weights"]) == ("epoch-00002", "ema")
    assert main(["weights", str(folder), "--which", "last", "-o", str(tmp_path / "weights.pt")]) == 0
    assert main(["checkpoints", str(folder), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {each["ranks"] for each in listed["checkpoints"]} == {2}
    main(["checkpoints", str(folder)])
    assert all("  2 ranks  " in line for line in capsys.readouterr().out.splitlines())

    damaged = folder / "epoch-00002" / "rank-1.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["checkpoints", str(folder)]) == 1
    assert "rank-1.pt is damaged" in capsys.readouterr().out
    assert load_weights(folder, linear(), which="best")["name"] == "epoch-00002"  # which are as they were written


def test_restoring_before_a_callback_says_that_there_are_ranks_is_refused(tmp_path: Path) -> None:
    """`restore` knows no callbacks, so the workload has to say it."""
    folder = tmp_path / "saved"
    save_on(1, folder)

    def go_on(rank: int) -> str:
        with pytest.raises(WorkloadError) as refused:
            restore(folder / "epochs", workload(batches(8), valid=batches(8)))
        return str(refused.value)

    for refused in forked(2, tmp_path / "group", go_on):
        assert refused.startswith("this is one of 2 processes, and restore has to know what they are")


def test_new_generators_are_of_the_form_that_there_was() -> None:
    """Of Python, NumPy, torch and each CUDA device; others than those of rank 0, and the same each time."""
    name, keys, *rest = np.random.RandomState(0).get_state()
    version, internal, gauss = random.Random(0).getstate()
    saved = {
        "python": [version, torch.tensor(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype("int64")), *rest],
        "cpu": torch.Generator().manual_seed(0).get_state(),
        "cuda": [torch.zeros(16, dtype=torch.uint8)],
        "own": {"train.generator": torch.Generator().get_state()},
    }

    one, again, two = (new_for_rank(saved, rank) for rank in (1, 1, 2))

    for kind in ("python", "numpy"):
        assert [type(part) for part in one[kind]] == [type(part) for part in saved[kind]]
        assert torch.equal(one[kind][1], again[kind][1])
        assert not torch.equal(one[kind][1], two[kind][1])
    assert torch.equal(one["cpu"], again["cpu"])
    assert one["cpu"].shape == saved["cpu"].shape
    assert not torch.equal(one["cpu"], two["cpu"])
    assert one["cuda"][0].shape == (16,)
    assert not torch.equal(one["cuda"][0], two["cuda"][0])
    assert one["own"] is saved["own"]
    assert new_for_rank({**saved, "numpy": None}, 1)["numpy"] is None
