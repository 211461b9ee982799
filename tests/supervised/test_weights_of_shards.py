"""The weights of a model that ranks shared out, read by one process: to the last bit those of all ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from fsm_train import Supervised, load_weights, restore
from fsm_train.checkpoints.manifest import MANIFEST, list_folder
from fsm_train.cli import main
from fsm_train.supervised.shares import whole
from fsm_train.supervised.weights import choose
from tests.checkpoints.sharded_training import Net, Trained, data_of, logs_of, sharded, trained_on, workload
from tests.forked import forked

Captured = pytest.CaptureFixture[str]


WAYS = ("2 ranks", "2 ranks with an average", "4 ranks")


@pytest.fixture(scope="module")
def all_trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("trained")
    found = [*trained_on(2, folder, averaged=(False, True)), *trained_on(4, folder)]
    return dict(zip(WAYS, found, strict=True))


@pytest.fixture(params=WAYS)
def trained(all_trained: dict[str, Trained], request: pytest.FixtureRequest) -> Trained:
    return all_trained[request.param]


@pytest.mark.parametrize("which", ["best", "last", "epoch-00001"])
def test_weights_are_those_of_all_ranks_together(which: str, trained: Trained) -> None:
    """To the last bit, in a model that is not sharded, by a process without a group."""
    assert not dist.is_initialized()
    model = Net()

    loaded = load_weights(trained.folder, model, which=which)

    expected = trained.measured[loaded["epoch"] - 1]
    assert loaded["epoch"] == {"last": 3, "epoch-00001": 1}.get(which, loaded["epoch"])
    assert loaded["weights"] == ("ema" if "average" in trained.folder.name else "model")
    ours = model.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], value) for name, value in expected.items())
    assert model.second.weight is model.first.weight


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_they_are_written_to_one_file(suffix: str, trained: Trained, tmp_path: Path, capsys: Captured) -> None:
    """As of a model that is on one rank: the same names, dtypes and bits."""
    file = tmp_path / f"weights{suffix}"

    assert main(["weights", str(trained.folder), "--which", "last", "-o", str(file), "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["epoch"] == 3
    written = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    assert written.keys() == trained.measured[2].keys()
    assert all(torch.equal(written[name], value) for name, value in trained.measured[2].items())
    assert all(type(value) is torch.Tensor for value in written.values())


def test_what_else_reads_checkpoints_reads_these(trained: Trained, capsys: Captured) -> None:
    """`fsm-train checkpoints` verifies each byte of each file, and says how many ranks wrote it."""
    assert main(["checkpoints", str(trained.folder), "--json"]) == 0

    listed = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(each["epoch"], each["good"]) for each in listed] == [(3, True), (2, True), (1, True)]
    sizes = [sum(p.stat().st_size for p in (trained.folder / each["name"]).iterdir()) for each in listed]
    manifests = [(trained.folder / each["name"] / MANIFEST).stat().st_size for each in listed]
    assert [each["bytes"] for each in listed] == [a - b for a, b in zip(sizes, manifests, strict=True)]
    assert {f"{each['ranks']} ranks" for each in listed} == {trained.folder.name[:7]}


def test_nothing_is_read_that_the_weights_do_not_need(trained: Trained) -> None:
    """The moments of an optimizer, which are twice as large, take no memory."""
    (parts, weights), _ = choose(trained.folder, "last", lambda path, parts, weights: (parts, weights))

    moments = [each["exp_avg"] for each in parts["optimizer"]["state"].values()]
    assert moments
    assert set(moments) == {None}
    own = None if weights == "model" else {*parts["modules"]["model"]["values"].values()}
    assert own is None or None not in own  # buffers are beside the average


def test_the_ranks_logs_are_the_same_to_the_byte(trained: Trained) -> None:
    """Also where they save what they share out."""
    one, *others = (path.read_bytes() for path in logs_of(trained.folder).glob("run-*.jsonl"))

    assert len(others) == int(trained.folder.name[0]) - 1
    assert one.count(b"SaveCheckpoint") >= 3
    assert all(other == one for other in others)


def everything(work: Supervised) -> dict[str, torch.Tensor]:
    """Weights and moments, all shares together, which all ranks ask for."""
    state = work.optimizer.state_dict()["state"]
    moments = {f"{i} {name}": whole(value) for i, own in state.items() for name, value in own.items()}
    return moments | {name: whole(value.detach()) for name, value in work.model.state_dict().items()}


def test_two_ranks_and_one_read_the_same_from_four(all_trained: dict[str, Trained], tmp_path: Path) -> None:
    """Each rank its shares, which begin and end within the pieces of others."""
    last = list_folder(all_trained["4 ranks"].folder).checkpoints[0].path

    def read(rank: int) -> dict[str, torch.Tensor]:
        work = workload(sharded(), *data_of(rank, 2), parallel="fsdp")
        assert restore(last, work).step == 6
        return everything(work)

    work = workload(Net(), *data_of(0, 1))
    restore(last, work)
    alone, (one, other) = everything(work), forked(2, tmp_path, read)
    assert any("exp_avg_sq" in name for name in alone)
    for name, value in alone.items():
        assert torch.equal(one[name], value), name
        assert torch.equal(other[name], value) or "running" in name, name
    assert all(torch.equal(alone[name], value) for name, value in all_trained["4 ranks"].measured[2].items())
