"""Damage on disk, kills in the middle of a save, full disks and files made with intent: found, said, survived."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import CheckpointError, Phase, State, Supervised, Transition, extend, on, restore, run, start
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints import folder as folders
from fsm_train.checkpoints import writing
from fsm_train.checkpoints.folder import Folder
from fsm_train.checkpoints.manifest import FORMAT, MANIFEST, STATE, TENSORS, Checkpoint, SavePoint, list_folder
from fsm_train.core.commands import SaveCheckpoint
from tests.checkpoints.faulty_disk import FaultyDisk
from tests.checkpoints.mutations import write_sealed
from tests.checkpoints.processes import FRESH, die_at_call
from tests.how_long import of_all, step_through
from tests.models import diabetes, sgd

FILES = (STATE, TENSORS, MANIFEST)


def _work(seed: int = 0, **settings: Any) -> Supervised:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    train = torch.utils.data.DataLoader(diabetes(), 64, shuffle=True)
    return Supervised(model, sgd(model), nn.MSELoss(), train, **settings)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of two epochs."""
    folder = tmp_path_factory.mktemp("two")
    run(start(_work(), epochs=2, seed=0), [checkpoint(folder)])
    return folder


# ---------------------------------------------------------------------------------------- damage


def _flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _zero(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data)) // 512 * 512
    data[at : at + 512] = bytes(len(data[at : at + 512]))


def _truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


@pytest.mark.long
def test_damage_is_found_and_said_and_the_newest_good_one_is_used(two: Path, tmp_path: Path) -> None:
    """A flipped bit, a zeroed page, a cut: whatever it hit, the file is named and the one before is gone on from."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    folder = tmp_path / "two"
    shutil.copytree(two, folder)
    newest = folder / "epoch-00002"
    work = _work()
    for i in range(of_all(1002, few=60)):
        name, damage = FILES[i % 3], (_flip, _zero, _truncate)[i // 3 % 3]
        good = (newest / name).read_bytes()
        data = bytearray(good)
        damage(data, draw)
        if data == good:  # a page that was zeroes already
            continue
        (newest / name).write_bytes(data)
        with pytest.warns(RuntimeWarning, match=f"{newest}.*continuing from {folder / 'epoch-00001'}"):
            assert restore(folder, work).epoch == 1, (seed, i)
        with pytest.raises(CheckpointError, match=str(newest)):
            restore(newest, work)
        (newest / name).write_bytes(good)
    assert restore(folder, work).epoch == 2


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_damage_too(name: str, two: Path, tmp_path: Path) -> None:
    """A checkpoint of which a file is gone is named, and not used."""
    shutil.copytree(two, tmp_path / "two")
    (tmp_path / "two" / "epoch-00002" / name).unlink()

    with pytest.warns(RuntimeWarning, match="epoch-00002"):
        assert restore(tmp_path / "two", _work()).epoch == 1


def test_where_nothing_is_good_nothing_is_loaded(two: Path, tmp_path: Path) -> None:
    """Without a good checkpoint that is an error which names them all; an empty or missing folder is one too."""
    shutil.copytree(two, tmp_path / "two")
    for path in (tmp_path / "two").iterdir():
        (path / STATE).write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"(?s)epoch-00002.*epoch-00001"):
        restore(tmp_path / "two", _work())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        restore(tmp_path / "empty", _work())
    with pytest.raises(CheckpointError, match="No such file"):
        restore(tmp_path / "nowhere", _work())


def test_other_folders_are_no_damage(two: Path, tmp_path: Path) -> None:
    """Something else that lies beside the checkpoints is none of ours, and stays."""
    shutil.copytree(two, tmp_path / "two")
    (tmp_path / "two" / "plots").mkdir()
    (tmp_path / "two" / "notes.txt").write_text("lr was too high")

    assert restore(tmp_path / "two", _work()).epoch == 2


# --------------------------------------------------------------------------- kills within a save


def _save_again(folder: str, die_at: int, said: Any) -> None:
    """Write the next checkpoint, and be gone at this write, flush, rename or removal, without any cleaning up."""
    work = _work()
    state = restore(folder, work)
    calls = die_at_call(die_at, "fsync", "rename", "mkdir", "rmdir", "unlink")
    run(extend(state, epochs=1), [checkpoint(folder, keep=1, last=1)])
    said.put(calls)


def _killed_at(original: Path, folder: Path, die_at: int, said: Any) -> int | None:
    shutil.copytree(original, folder)
    process = FRESH.Process(target=_save_again, args=(str(folder), die_at, said))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.long
def test_a_kill_at_any_moment_of_a_save_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    """Killed at each write, flush, rename and removal: one loads, without a warning, and the next save tidies up."""
    original, said = tmp_path / "original", FRESH.SimpleQueue()
    run(start(_work(), epochs=1, seed=0), [checkpoint(original, keep=1, last=1)])
    assert _killed_at(original, tmp_path / "0", 0, said) == 0
    calls = said.get()
    assert set(calls) == {"fsync", "rename", "mkdir", "rmdir", "unlink", "write"}
    writes = [i for i, name in enumerate(calls, 1) if name == "write"]
    others = [i for i, name in enumerate(calls, 1) if name != "write"]
    seen = set()
    for die_at in (*others, *writes[:: step_through(few=len(writes) // 5)]):
        folder = tmp_path / str(die_at)
        assert _killed_at(original, folder, die_at, said) == 9
        state = restore(folder, _work())
        seen.add(state.epoch)
        run(extend(state, epochs=1), [checkpoint(folder, keep=1, last=1)])
        assert [path.name for path in folder.iterdir()] == [f"epoch-{state.epoch + 1:05d}"], die_at
    assert seen == {1, 2}


def test_a_replaced_checkpoint_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames of a save under a name that exists, the one that was there is still found."""
    _write(tmp_path, "a", 1)
    (tmp_path / "a").rename(tmp_path / ".replaced-a-00000000")
    (tmp_path / ".writing-a-00000000").mkdir()
    (tmp_path / ".writing-a-00000000" / STATE).write_bytes(b"{}")
    (tmp_path / ".writing-a-00000000" / MANIFEST).write_bytes(b"0" * 64 + b"\n{}")
    for i, begun in enumerate((b"", b"0" * 40)):  # a manifest that was not written whole
        (tmp_path / f".writing-b-0000000{i}").mkdir()
        (tmp_path / f".writing-b-0000000{i}" / MANIFEST).write_bytes(begun)

    assert [c.save_point.iteration for c in find(tmp_path)] == [1]
    _write(tmp_path, "b", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert [c.path.name for c in find(tmp_path)] == ["b", "a"]


@pytest.mark.parametrize("left", [{}, {MANIFEST: b""}, {MANIFEST: bytes(90), STATE: b"{}"}])
def test_whatever_a_crash_leaves_of_a_save_is_removed(left: dict[str, bytes], tmp_path: Path) -> None:
    """Also if the disk never had what was written into its first file; under another name it is none of ours."""
    for name in (".writing-a-00000000", "mine", ".writing-mine"):
        (tmp_path / name).mkdir()
        for file, content in left.items():
            (tmp_path / name / file).write_bytes(content)
    _write(tmp_path, "b", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-mine", "b", "mine"]


def test_what_supersedes_others_may_be_damaged(tmp_path: Path) -> None:
    """What it would have removed is still there to go on from, until the next one is written."""
    _write(tmp_path, "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "kept")
    _write(tmp_path, "b", 2, drop=("a",))
    (tmp_path / "kept").rename(tmp_path / "a")
    (tmp_path / "b" / TENSORS).write_bytes(b"damaged")

    with contextlib.closing(Folder(tmp_path)) as held:
        (tmp_path / "c").write_text("mine")
        with pytest.raises(FileExistsError):
            held.write("c", b"{}", {}, SavePoint(3, 3, 0.0))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a", "b", "c"]
        (tmp_path / "c").unlink()
        held.write("c", b"{}", {}, SavePoint(3, 3, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2])
def test_a_replaced_checkpoint_is_back_if_the_new_one_fails(
    at: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised when the files, or the names of the folder, are flushed: the one that was there is there."""
    _write(tmp_path, "a", 1)
    flush, calls = folders.flush_folder, iter(range(1, 100))

    def instead(path: Path) -> None:
        if next(calls) == at:
            raise error
        flush(path)

    monkeypatch.setattr(folders, "flush_folder", instead)
    monkeypatch.setattr(writing, "flush_folder", instead)
    with pytest.raises(type(error)):
        _write(tmp_path, "a", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [c.save_point.iteration for c in find(tmp_path)] == [1]
    _write(tmp_path, "a", 3)
    assert [c.save_point.iteration for c in find(tmp_path)] == [3]


def _refuse_renames(monkeypatch: pytest.MonkeyPatch, begins: str, becomes: str) -> None:
    """From now on, nothing whose name begins like this can get a name that begins like that."""
    rename = Path.rename

    def instead(path: Path, target: Path) -> Path:
        if path.name.startswith(begins) and Path(target).name.startswith(becomes):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", instead)


@pytest.mark.parametrize("refused", ["rename", "unlink", "rmdir"])
def test_what_the_disk_refuses_to_remove_is_tried_again(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each save, until it works; until then nothing else is wrong."""
    with contextlib.closing(Folder(tmp_path)) as held, monkeypatch.context() as patched:
        for i in (1, 2, 3, 4):
            if i == 2 and refused == "rename":
                _refuse_renames(patched, "a", ".writing")
            elif i == 2:
                FaultyDisk(tmp_path, OSError(errno.EIO, "broken"), patched).refuses = (refused,)
            if i == 4:
                patched.undo()
            held.write(f"a{i}", b"{}", {}, SavePoint(i, i, 0.0, (f"a{i - 1}",)))
            there = sorted(path.name for path in tmp_path.iterdir())
            assert len(there) == {1: 2, 2: 3, 3: 4, 4: 2}[i], there
    assert [path.name for path in tmp_path.iterdir()] == ["a4"]


def test_what_was_replaced_goes_when_the_new_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses to flush the folder, and to take the new one away again: both are there till the next save."""
    with contextlib.closing(Folder(tmp_path)) as held:
        held.write("a", b"{}", {}, SavePoint(1, 1, 0.0))
        with monkeypatch.context() as patched:
            _refuse_renames(patched, "a", ".writing")
            patched.setattr(folders, "flush_folder", lambda path: os.close(-1))
            with pytest.raises(OSError, match="Bad file descriptor"):
                held.write("a", b"{}", {}, SavePoint(2, 2, 0.0))
        assert [c.save_point.iteration for c in find(tmp_path)] == [2, 1]
        held.write("b", b"{}", {}, SavePoint(3, 3, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert [c.save_point.iteration for c in find(tmp_path)] == [3, 2]


@pytest.mark.parametrize("looks", [("listdir", "scandir"), ("stat",)])
def test_a_folder_that_cannot_be_read_is_an_error_before_the_first_batch(
    looks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is let go of."""
    _write(tmp_path, "a", 1)
    with monkeypatch.context() as patched:
        FaultyDisk(tmp_path, OSError(errno.EIO, os.strerror(errno.EIO)), patched).refuses = looks
        with pytest.raises(CheckpointError, match=f"{tmp_path}.*{os.strerror(errno.EIO)}"):
            Folder(tmp_path)
    Folder(tmp_path).close()


def find(folder: Path) -> list[Checkpoint]:
    return list_folder(folder).checkpoints


def _write(folder: Path, name: str, iteration: int, drop: tuple[str, ...] = ()) -> None:
    held = Folder(folder)
    with contextlib.closing(held):
        held.write(name, b"{}", {"x": torch.zeros(2)}, SavePoint(iteration, iteration, 0.0, drop))


def test_newest_is_what_was_written_last(tmp_path: Path) -> None:
    """Not what is farthest: a training that was begun anew in the same folder goes on with its own."""
    _write(tmp_path, "a", 20)
    _write(tmp_path, "b", 3)

    assert [c.path.name for c in find(tmp_path)] == ["b", "a"]


def test_what_was_to_be_dropped_is_dropped_by_the_next_save(tmp_path: Path) -> None:
    """A kill just before the old ones were dropped does not leave them for ever; a newer one of that name stays."""
    _write(tmp_path, "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "kept")
    _write(tmp_path, "b", 2, drop=("a",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "kept"]
    (tmp_path / "kept").rename(tmp_path / "a")

    _write(tmp_path, "c", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    _write(tmp_path, "a", 4)
    _write(tmp_path, "d", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    """A checkpoint is not written elsewhere by its name."""
    for name in ("../a", "a/b", ".hidden", "", "a\0"):

        @on(Phase.EPOCH_END)
        def save(state: State) -> Transition:
            return Transition(commands=(SaveCheckpoint(str(tmp_path / "folder"), name),))  # noqa: B023

        with pytest.raises(ValueError, match="cannot be called"):
            run(start(_work(), epochs=1), [save])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("at", ["mkdir", "write", "fsync", "rename"])
def test_a_full_disk_does_not_end_the_training(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training goes on, the last good checkpoint is untouched, and a warning says the reason."""
    run(start(_work(), epochs=1, seed=0), [checkpoint(tmp_path)])
    before = (tmp_path / "epoch-00001" / TENSORS).read_bytes()
    work = _work()
    state = extend(restore(tmp_path, work), epochs=1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing._HashingFile if at == "write" else os, at, full)
    with pytest.warns(RuntimeWarning, match="could not be written.*No space left.*the training continues"):
        final = run(state, [checkpoint(tmp_path)])
    monkeypatch.undo()

    assert (final.phase, final.epoch) == (Phase.DONE, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00001"]
    assert (tmp_path / "epoch-00001" / TENSORS).read_bytes() == before
    assert restore(tmp_path, _work()).epoch == 1


def _under_a_limit(folder: str, said: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    work = _work()
    state = extend(restore(folder, work), epochs=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        final = run(state, [checkpoint(folder)])
    said.put((final.epoch, [str(warning.message) for warning in caught]))


def test_a_write_that_the_kernel_refuses(tmp_path: Path) -> None:
    """The same where it is the system that gives up in the middle of a file, and not a test that says so."""
    run(start(_work(), epochs=1, seed=0), [checkpoint(tmp_path)])
    said = FRESH.SimpleQueue()
    process = FRESH.Process(target=_under_a_limit, args=(str(tmp_path), said))
    process.start()
    process.join()
    epoch, messages = said.get()

    assert (process.exitcode, epoch) == (0, 2)
    assert "File too large" in messages[0]
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00001"]


# ------------------------------------------------------------------------------- made with intent

RAN: list[str] = []


def _ran() -> None:
    RAN.append("code of the file")


class _RunsCode:
    def __reduce__(self) -> Any:
        return _ran, ()


def _with(folder: Path, name: str, data: bytes) -> Path:
    """A checkpoint in which this file holds these bytes, and the manifest says so."""
    path = folder / "epoch-00002"
    (path / name).write_bytes(data)
    body = json.loads((path / MANIFEST).read_bytes().partition(b"\n")[2])
    body["files"][name] = [len(data), hashlib.sha256(data).hexdigest()]
    write_sealed(path, json.dumps(body).encode())
    return path


def _pickled(_: bytes) -> bytes:
    return pickle.dumps(_RunsCode())


def _torch_pickled(_: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({"model": _RunsCode()}, file)
    return file.getvalue()


def _not_a_dict(_: bytes) -> bytes:
    file = io.BytesIO()
    torch.save([torch.zeros(1)], file)
    return file.getvalue()


def _other_parts(_: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({"model": {}}, file)
    return file.getvalue()


def _climbing(good: bytes) -> bytes:
    return _with_entry(good, "../../climbed", b"out", zipfile.ZIP_STORED)


def _bomb(good: bytes) -> bytes:
    return _with_entry(good, "archive/data/999", bytes(10**6), zipfile.ZIP_DEFLATED)


def _with_entry(good: bytes, name: str, data: bytes, kind: int) -> bytes:
    file = io.BytesIO(good)
    with zipfile.ZipFile(file, "a", kind) as archive:
        archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("made", [_pickled, _torch_pickled, _not_a_dict, _other_parts, _climbing, _bomb])
def test_archives_made_with_intent_are_refused(made: Callable[[bytes], bytes], two: Path, tmp_path: Path) -> None:
    """With checksums that fit: nothing in them is run, nothing is written, and they are refused with a sentence."""
    shutil.copytree(two, tmp_path / "two")
    path = _with(tmp_path / "two", TENSORS, made((two / "epoch-00002" / TENSORS).read_bytes()))

    with pytest.raises(CheckpointError, match=r"tensors.pt"):
        restore(path, _work())
    with pytest.warns(RuntimeWarning, match=r"tensors.pt.*continuing from"):
        assert restore(tmp_path / "two", _work()).epoch == 1
    assert RAN == []
    assert [p.name for p in tmp_path.iterdir()] == ["two"]


def _state(**changes: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda good: json.dumps({**good, **changes}).encode()


@pytest.mark.parametrize(
    "made",
    [
        lambda good: b"[" * 10**6,
        lambda good: json.dumps(good).encode().replace(b'"epoch": 2', b'"epoch": ' + b"9" * 10**6),
        _state(epoch="x" * 10**6),
        _state(epoch=1e300),
        _state(epoch=-1),
        _state(step=True),
        *(_state(flags=flags) for flags in (1 << 40, -1, True, 1.0)),
        _state(resume_at={"$enum": "Phase.STEP_BEGIN"}),
        _state(resume_at={"$enum": "Operation.STEP"}),
        _state(resume_at={"$": "Popen", "args": "true"}),
        _state(metrics=[1]),
        *(_state(notes=notes) for notes in (3, None, "text", [3])),
        *(_state(elapsed=elapsed) for elapsed in ("text", -1, True, {"$float": "nan"})),
        _state(history=json.loads("[" * 300 + "]" * 300)),
        _state(plan={"epochs": 1, "os": "system"}),
        _state(hyper={"$int": "9" * 10**5}),
        _state(memory=3),
        lambda good: b"{}",
        lambda good: b"\xff\xfe",
    ],
)
def test_states_made_with_intent_are_refused(
    made: Callable[[dict[str, Any]], bytes], two: Path, tmp_path: Path
) -> None:
    """Deep, huge or strange JSON is refused with a sentence, and the one before it is used."""
    shutil.copytree(two, tmp_path / "two")
    good = json.loads((two / "epoch-00002" / STATE).read_bytes())
    path = _with(tmp_path / "two", STATE, made(good))

    with pytest.raises(CheckpointError):
        restore(path, _work())
    with pytest.warns(RuntimeWarning, match="continuing from"):
        assert restore(tmp_path / "two", _work()).epoch == 1


PLACE = {"iteration": 1, "step": 1, "written": 0.0, "drop": []}
SCORE = {"monitor": "valid_loss", "mode": "min", "value": 1.0, "weights": "model"}


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"state.json": [1, ""], "../../secret": [1, ""]}},
        {"files": {"state.json": [1, ""]}},
        {"files": {"state.json": [1, ""], "tensors.pt": [1, ""], "rank-2.pt": [1, ""]}},
        {"files": {"state.json": [1, ""], "tensors.pt": [1, ""], "rank-0.pt": [1, ""]}},
        {"files": 3},
        {"format": FORMAT + 1},
        {"format": "1"},
        {"place": {"iteration": 1}},
        {"number": "first"},
        {"number": float("inf")},
        {"number": -1},
        {"place": {"iteration": 1, "step": True, "written": 0.0, "drop": []}},
        {"place": {"iteration": 1, "step": 1, "written": float("nan"), "drop": []}},
        {"place": {"iteration": 1, "step": 1, "written": 1e300, "drop": []}},
        {"place": {"iteration": 1, "step": 1, "written": "today", "drop": []}},
        {"place": {**PLACE, "score": {**SCORE, "value": "low"}}},
        {"place": {**PLACE, "score": {**SCORE, "value": float("inf")}}},
        {"place": {**PLACE, "score": {**SCORE, "mode": "best"}}},
    ],
)
def test_manifests_that_name_other_files_are_refused(change: dict[str, Any], two: Path, tmp_path: Path) -> None:
    """A manifest speaks of the two files of a checkpoint, in the format that is known, and of nothing else."""
    shutil.copytree(two, tmp_path / "two")
    path = tmp_path / "two" / "epoch-00002"
    body = json.loads((path / MANIFEST).read_bytes().partition(b"\n")[2])
    write_sealed(path, json.dumps({**body, **change}).encode())

    with pytest.raises(CheckpointError, match="epoch-00002"):
        restore(path, _work())


def test_manifests_that_are_no_files_or_too_large_are_refused(two: Path, tmp_path: Path) -> None:
    """Nothing is read that could have no end."""
    shutil.copytree(two, tmp_path / "two")
    manifest = tmp_path / "two" / "epoch-00002" / MANIFEST
    manifest.write_bytes(bytes(2**20 + 1))
    with pytest.raises(CheckpointError, match="too large"):
        restore(manifest.parent, _work())
    write_sealed(manifest.parent, b"[" * 10**5)
    with pytest.raises(CheckpointError, match="is not a manifest"):
        restore(manifest.parent, _work())


def test_links_are_not_followed(two: Path, tmp_path: Path) -> None:
    """The files of a checkpoint are its own."""
    shutil.copytree(two, tmp_path / "two")
    file = tmp_path / "two" / "epoch-00002" / STATE
    file.unlink()
    file.symlink_to(two / "epoch-00002" / STATE)

    with pytest.raises(CheckpointError, match="no file of its own"):
        restore(file.parent, _work())


def test_a_manifest_removes_nothing_elsewhere(tmp_path: Path) -> None:
    """What it wants dropped is looked for among the checkpoints of its folder only."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / STATE).write_text("{}")
    folder = tmp_path / "folder"
    _write(folder, "a", 1, drop=("../precious", str(tmp_path / "precious"), "."))
    _write(folder, "b", 2)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "precious"]
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b"]
