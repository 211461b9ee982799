"""Damage to the files of tensors that ranks share out: a sentence, and never another tensor than was written."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fsm_train import CheckpointError, Supervised, WorkloadError, load_weights, restore
from fsm_train.checkpoints.manifest import MANIFEST, TENSORS
from fsm_train.checkpoints.shards import METADATA
from fsm_train.cli import main
from tests.checkpoints.faulty_disk import FaultyDisk
from tests.checkpoints.mutations import body_of, seal
from tests.checkpoints.rich_training import everything, same
from tests.checkpoints.shard_mutations import KINDS, describe, described
from tests.checkpoints.sharded_training import Net, Trained, data_of, trained_on, workload
from tests.checkpoints.test_mutations import BYTES, SECONDS, most_memory, refusal_of
from tests.how_long import of_all

Captured = pytest.CaptureFixture[str]

FILES = (METADATA, "__0_0.distcp", "__1_0.distcp")
LAST, BEFORE = "epoch-00003", "epoch-00001"
MUTATIONS = of_all(1_500, few=6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Checkpoints of two ranks, with an average."""
    (trained,) = trained_on(2, tmp_path_factory.mktemp("trained"), averaged=(True,))
    return trained


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """The first and the last of them."""
    for name in (LAST, BEFORE):
        shutil.copytree(trained.folder / name, tmp_path / "saved" / name)
    return tmp_path / "saved"


def alone() -> Supervised:
    """The training in one process, where nothing is sharded."""
    return workload(Net(), *data_of(0, 1))


# ---------------------------------------------------------------------------------------- damage


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def lengthen(data: bytearray, draw: random.Random) -> None:
    data += bytes(draw.randrange(1, 100))


def damage_somehow(path: Path, draw: random.Random, kind: int) -> None:
    data = bytearray(path.read_bytes())
    (cut, flip, lengthen)[kind % 3](data, draw)
    path.write_bytes(data)


@pytest.mark.long
@pytest.mark.parametrize("file", FILES)
def test_damage_of_any_byte_is_named_and_the_one_before_is_taken(file: str, trained: Trained, folder: Path) -> None:
    """By each way that reads weights or a whole training, and without a change of the model."""
    seed = random.SystemRandom().randrange(2**32)
    draw, model, work = random.Random(seed), Net(), alone()
    good = (folder / LAST / file).read_bytes()
    for number in range(of_all(150, few=3)):
        damage_somehow(folder / LAST / file, draw, number)
        before = everything(work, model)
        for call in (lambda: load_weights(folder / LAST, model), lambda: restore(folder / LAST, work)):
            with pytest.raises(CheckpointError, match=rf"{folder / LAST / file} is damaged: it ") as refused:
                call()
            assert same(everything(work, model), before), (seed, number)
        with pytest.warns(RuntimeWarning) as warned:
            assert load_weights(folder, model, which="last")["name"] == BEFORE, (seed, number)
        assert str(refused.value) in str(warned[0].message)
        (folder / LAST / file).write_bytes(good)
    assert all(torch.equal(value, trained.measured[0][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "damage"),
    [*itertools.product(FILES, ("gone", "a folder", "a link")), ("__1_0.distcp", "of another checkpoint")],
)
def test_a_file_that_is_not_there_is_damage_too(file: str, damage: str, folder: Path, capsys: Captured) -> None:
    """It is named by `load_weights`, `restore` and `fsm-train checkpoints`."""
    path = folder / LAST / file
    path.rename(folder / "away")
    if damage == "a folder":
        path.mkdir()
    elif damage == "a link":
        path.symlink_to(folder / "away")
    elif damage != "gone":
        shutil.copy(folder / BEFORE / file, path)

    with pytest.raises(CheckpointError, match=str(path)):
        load_weights(folder / LAST, Net())
    with pytest.warns(RuntimeWarning, match=f"{path}.*continuing from {folder / BEFORE}"):
        assert restore(folder, alone()).step == 4
    assert main(["checkpoints", str(folder)]) == 1
    assert str(path) in capsys.readouterr().out


def test_a_file_that_no_manifest_names_is_not_read(trained: Trained, folder: Path) -> None:
    """It may be of a rank that another training had, or of somebody's own."""
    shutil.copy(folder / BEFORE / "__0_0.distcp", folder / LAST / "__2_0.distcp")
    model = Net()

    load_weights(folder, model, which="last")

    assert all(torch.equal(value, trained.measured[2][name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------- digests that fit


def at_another_place(last: Path) -> None:
    metadata = described(last)
    info = next(iter(metadata.storage_data.values()))
    info.offset = (last / info.relative_path).stat().st_size - 10
    describe(last, metadata)


def huge(last: Path) -> None:
    metadata = described(last)
    tensor = next(iter(metadata.state_dict_metadata.values()))
    tensor.size = torch.Size((2**40,))
    tensor.chunks = [type(tensor.chunks[0])(torch.Size((0,)), torch.Size((2**40,)))]
    describe(last, metadata)


def of_another_dtype(last: Path) -> None:
    """As wide, so that nothing but the tensor itself says it."""
    metadata = described(last)
    for tensor in metadata.state_dict_metadata.values():
        tensor.properties.dtype = torch.int32
    describe(last, metadata)


def pieces_of_each_other(last: Path) -> None:
    (last / "__0_0.distcp").rename(last / "away")
    (last / "__1_0.distcp").rename(last / "__0_0.distcp")
    (last / "away").rename(last / "__1_0.distcp")
    seal(last)


def of_no_tensor(last: Path) -> None:
    path = last / "__1_0.distcp"
    path.write_bytes(bytes(path.stat().st_size))
    seal(last)


def without_a_tensor(last: Path) -> None:
    metadata = described(last)
    metadata.state_dict_metadata.popitem()
    describe(last, metadata)


def without_a_rank(last: Path) -> None:
    body = body_of(last)
    del body["files"]["__1_0.distcp"]
    seal(last, body)


def without_metadata(last: Path) -> None:
    body = body_of(last)
    del body["files"][METADATA]
    seal(last, body)


def without_any(last: Path) -> None:
    body = body_of(last)
    body["files"] = {name: digest for name, digest in body["files"].items() if name not in FILES}
    seal(last, body)


def without_places(last: Path) -> None:
    parts = torch.load(last / TENSORS, weights_only=True)
    del parts["shards"]
    torch.save(parts, last / TENSORS)
    seal(last)


FORGED: dict[Callable[[Path], None], str] = {
    at_another_place: rf"{METADATA} was refused: a piece of '.*' is outside of its file",
    huge: rf"{METADATA} was refused: a piece of '.*' has more elements than its file has room for",
    of_another_dtype: r"distcp does not have a tensor of .* and torch.int32 where one belongs",
    pieces_of_each_other: r"distcp",
    of_no_tensor: r"__1_0.distcp was refused: it holds something other than tensors",
    without_a_tensor: rf"{METADATA} was refused: it does not have the tensors that the others lack",
    without_a_rank: rf"{METADATA} was refused: a piece of '.*' is outside of its file, '__1_0.distcp'",
    without_metadata: f"{MANIFEST} names the files",
    without_any: "lacks tensors that ranks shared out",
    without_places: "the tensors that the others lack",
}


@pytest.mark.parametrize("forge", FORGED, ids=lambda forge: forge.__name__)
def test_what_was_made_with_intent_is_refused_in_words(forge: Callable[[Path], None], folder: Path) -> None:
    """The digests fit, and what they are of does not. Nothing changes."""
    forge(folder / LAST)
    model, work = Net(), alone()
    before = everything(work, model)

    for call in (lambda: load_weights(folder / LAST, model), lambda: restore(folder / LAST, work)):
        with pytest.raises(CheckpointError, match=FORGED[forge]):
            call()
    assert main(["weights", str(folder / LAST), "-o", str(folder / "weights.pt")]) == 2

    assert same(everything(work, model), before)
    assert not (folder / "weights.pt").exists()


def _call(number: int, folder: Path, work: Supervised, model: nn.Module) -> Callable[[], object]:
    """What is done with a mutated checkpoint: each mutation meets one of the ways to read it, in turn."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: load_weights(folder / LAST, model),
        lambda: restore(folder / LAST, work),
        lambda: main(["weights", str(folder / LAST), "-o", str(folder / "weights.safetensors")]),
    )
    return ways[number % len(ways)]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_shards_are_loaded_or_refused(kind: str, folder: Path, capsys: Captured) -> None:
    """A refusal is a documented error that changes nothing; nothing takes long, or memory that is not in the files."""
    refusals, good, memory = 0, folder.with_name("good"), most_memory()
    shutil.copytree(folder / LAST, good)
    work, model = alone(), Net()
    before = everything(work, model)
    for number in range(MUTATIONS):
        where = f"{kind}, mutation {number}"
        shutil.rmtree(folder / LAST)
        shutil.copytree(good, folder / LAST)
        KINDS[kind](folder / LAST, random.Random(where))
        begin = time.process_time()  # a machine may be busy
        with warnings.catch_warnings(action="ignore"):
            refusal = refusal_of(_call(number, folder, work, model))
        assert time.process_time() - begin < SECONDS, where
        assert refusal is None or isinstance(refusal, (CheckpointError, WorkloadError)), (where, refusal)
        refusals += refusal is not None or "fsm-train: " in capsys.readouterr().err
        if refusal is not None:
            assert same(everything(work, model), before), (where, refusal)
        elif number % 3 != 2:
            work, model = alone(), Net()
            before = everything(work, model)
    assert refusals
    assert most_memory() - memory < BYTES


# ---------------------------------------------------------------------------------------- the disk


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_leaves_the_file_that_was_there(suffix: str, folder: Path, capsys: Captured) -> None:
    """Wherever it is full while weights are gathered into one file; nothing half-written stays."""
    file = folder.with_name("out") / f"weights{suffix}"
    file.parent.mkdir()
    arguments = ["weights", str(folder), "--which", "last", "-o", str(file)]
    assert main(arguments) == 0
    size = file.stat().st_size
    file.write_bytes(b"of before")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in range(0, size, size // of_all(100, few=3)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
        try:
            status = main(arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert status == 2, room
        assert "File too large" in capsys.readouterr().err, room
        assert [path.name for path in file.parent.iterdir()] == [file.name], room
        assert file.read_bytes() == b"of before", room


def test_a_disk_that_cannot_be_read_is_damage(folder: Path) -> None:
    """The checkpoint before is taken, and the file is named."""
    with pytest.MonkeyPatch.context() as patched:
        broken = OSError(errno.EIO, os.strerror(errno.EIO))
        FaultyDisk(folder / LAST / "__1_0.distcp", broken, patched).refuses = ("read", "open")
        with pytest.warns(RuntimeWarning, match="__1_0.distcp cannot be read: Input/output error"):
            assert load_weights(folder, Net(), which="last")["name"] == BEFORE
