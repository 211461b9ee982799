"""The history in a checkpoint: complete in each, written once and then linked, and not shared by the newest two."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsm_train import CheckpointError, State, Supervised, extend, restore, run, start
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints import history_files
from fsm_train.checkpoints.history_files import (
    HistoryFiles,
    content_of,
    epochs_in_files,
    is_history_file,
    name_of,
    read_history,
    spans,
)
from fsm_train.checkpoints.manifest import MANIFEST, STATE, manifest_of
from fsm_train.cli import main
from fsm_train.core.history import History
from fsm_train.testing.differences import same

ODD = ({"a": float("nan")}, {"a": -0.0}, {"a": float("-inf"), "b": 2**70}, {}, {"ä\ud800 $map": 1.0}, {"$map": 5e-324})
"""Metrics that JSON easily gets wrong."""


def workload() -> Supervised:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Supervised(model, optimizer, nn.MSELoss(), [(torch.zeros(4, 3), torch.ones(4, 1))])


def trained(history: Any) -> State:
    """A finished training with this history."""
    return attrs.evolve(run(start(workload(), epochs=1, seed=0)), history=history)


def epochs(count: int) -> tuple[dict[str, float], ...]:
    return tuple({"valid_loss": i / 7} for i in range(count))


def inodes(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in path.iterdir() if is_history_file(file.name)}


def shared(one: Path, other: Path) -> set[str]:
    """The names of the files that two checkpoints share."""
    theirs = inodes(other)
    return {name for name, inode in inodes(one).items() if theirs.get(name) == inode}


class Saves:
    """Saves histories into a folder, as checkpoints do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history: History[Any] = History()
        self.writer = HistoryFiles()

    def save(self, name: str, history: History[Any], drop: Iterable[str] = ()) -> None:
        unfinished, path = self.folder / ".writing", self.folder / name
        unfinished.mkdir()
        self.writer.write(unfinished, history, path, {path, *(self.folder / other for other in drop)})
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
        self.writer.complete()
        self.history = history
        for other in {*drop} - {name}:
            shutil.rmtree(self.folder / other)

    def read(self, name: str) -> History[Any]:
        path = self.folder / name
        return read_history((file.name for file in path.iterdir()), lambda file: (path / file).open("rb"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 2, 4 and 8 epochs."""
    monkeypatch.setattr(history_files, "_EPOCHS", 2)
    monkeypatch.setattr(history_files, "_GROWTH", 2)
    monkeypatch.setattr(history_files, "_LARGEST", 8)


# ------------------------------------------------------------------------------- which files


@given(st.integers(0, 3_000_000))
def test_files_follow_each_other(length: int) -> None:
    """From the first epoch to the last that is in a file, whatever the length; and there are few."""
    found = list(spans(length))

    ends = [0, *(end for _, end in found)]
    assert [start for start, _ in found] == ends[:-1]
    assert ends[-1] == epochs_in_files(length)
    assert 0 <= length - ends[-1] < 256
    assert len(found) <= 14 + length // 16_384
    assert all(is_history_file(name_of(span)) for span in found)
    assert sorted(map(name_of, found)) == [*map(name_of, found)]


def test_an_epoch_is_written_a_few_times() -> None:
    """Once in each size of a file."""
    written: set[tuple[int, int]] = set()
    for length in range(20_000):
        written.update(spans(length))

    assert sum(end - start for start, end in written) <= 3 * 20_000


def test_a_short_history_has_no_file(tmp_path: Path) -> None:
    """The checkpoint of a short training is what it was before there were such files."""
    run(extend(trained(epochs(9)), epochs=1), [checkpoint(tmp_path)])
    (path,) = tmp_path.iterdir()

    assert inodes(path) == {}
    assert json.loads((path / MANIFEST).read_bytes().partition(b"\n")[2])["format"] == 2
    assert restore(tmp_path, workload()).history[:9] == epochs(9)


# ------------------------------------------------------------------------- what is written


@pytest.mark.usefixtures("small")
def test_each_checkpoint_has_the_whole_history(tmp_path: Path) -> None:
    """Exactly, at each length, read alone, whatever is in it; and a training that is restored goes on from it."""
    final = run(extend(trained(ODD), epochs=20), [checkpoint(tmp_path, keep=100)])
    paths = sorted(tmp_path.iterdir())

    assert len(paths) == 20
    for i, path in enumerate(paths, start=7):
        assert same(restore(path, workload()).history, final.history[:i])
        assert json.loads((path / MANIFEST).read_bytes().partition(b"\n")[2])["format"] == 3
    work = workload()
    again = run(extend(restore(tmp_path, work), epochs=5), [checkpoint(tmp_path)])
    assert same(again.history[:26], final.history)
    assert same(restore(tmp_path, workload()).history, again.history)


@pytest.mark.usefixtures("small")
def test_a_file_is_linked_to_the_one_before_the_last(tmp_path: Path) -> None:
    """So the newest two share nothing, and of the third nothing is written again."""
    run(extend(trained(epochs(16)), epochs=6), [checkpoint(tmp_path, keep=100)])
    paths = sorted(tmp_path.iterdir())

    large = {name_of((0, 8)), name_of((8, 16))}
    for before_last, last, now in zip(paths, paths[1:], paths[2:], strict=False):
        assert shared(now, last) == set()
        assert shared(now, before_last) >= large


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_two_that_stay_share_nothing(keep: int, tmp_path: Path) -> None:
    """Also where those between them are dropped: of steps, say."""
    saves, history, names = Saves(tmp_path), History(epochs(16)), list[str]()
    for i in range(20):
        name = f"step-{i}" if i % 3 == 0 else f"epoch-{i}"
        ends = [other for other in names if other.startswith("epoch")]
        drop = [other for other in names if other.startswith("step") or other in ends[:-keep]]
        history += epochs(1)
        saves.save(name, history, drop)
        names = [*(other for other in names if other not in drop), name]

        if len(names) > 1:
            assert shared(tmp_path / names[-1], tmp_path / names[-2]) == set()
        assert all(len(saves.read(other)) >= 16 for other in names)
        assert saves.read(name) == history[: epochs_in_files(len(history))]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["last", "{}"])
def test_the_only_checkpoint_that_stays_is_linked_to_the_one_that_goes(name: str, tmp_path: Path) -> None:
    """Replaced or dropped: there is no second one that a damaged file would cost, and nothing is written again."""
    saves = Saves(tmp_path)
    saves.save(name.format(0), History(epochs(16)))
    before = inodes(tmp_path / name.format(0))

    saves.save(name.format(1), History(saves.history), [name.format(0)])
    assert not inodes(tmp_path / name.format(1)).items() & before.items()  # another history, for all that is known
    before = inodes(tmp_path / name.format(1))
    saves.save(name.format(2), saves.history + epochs(1), [name.format(1)])

    assert inodes(tmp_path / name.format(2)) == before


def test_a_save_writes_what_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After thousands of epochs as after hundreds, from the third save on."""
    written: list[int] = []
    content = history_files.content_of

    def counted(history: Any) -> bytes:
        written.append(len(history))
        return content(history)

    monkeypatch.setattr(history_files, "content_of", counted)
    run(extend(trained(epochs(5_000)), epochs=20), [checkpoint(tmp_path)])

    assert sum(written) == 2 * epochs_in_files(5_000)  # for the newest two, which share nothing
    assert max((path / STATE).stat().st_size for path in tmp_path.iterdir()) < 100_000


# ---------------------------------------------------------------------------------- damage


@pytest.mark.usefixtures("small")
def test_one_damaged_file_costs_one_checkpoint(tmp_path: Path) -> None:
    """Each file of the newest, damaged where it is: the one before it is whole."""
    final = run(extend(trained(epochs(16)), epochs=4), [checkpoint(tmp_path)])
    *_, before, newest = sorted(tmp_path.iterdir())

    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        with path.open("r+b") as file:  # as a bad disk does: the same file, linked or not
            file.seek(len(whole) // 2)
            file.write(bytes([whole[len(whole) // 2] ^ 1]))
        with pytest.warns(RuntimeWarning, match=f"continuing from {before}"):
            restored = restore(tmp_path, workload())
        assert restored.history == final.history[:-1]
        with path.open("r+b") as file:
            file.write(whole)
    assert restore(tmp_path, workload()).history == final.history


@pytest.mark.usefixtures("small")
def test_a_file_that_was_changed_or_is_gone_is_not_linked(tmp_path: Path) -> None:
    """The next checkpoint of its line has it written anew, and so is whole."""
    saves, history = Saves(tmp_path), History(epochs(16))
    saves.save("0", history)
    saves.save("1", history)
    changed, gone = (tmp_path / "0" / name_of(span) for span in ((0, 8), (8, 16)))
    changed.write_bytes(changed.read_bytes())
    gone.unlink()
    saves.save("2", history)
    saves.save("3", history)

    assert shared(tmp_path / "2", tmp_path / "0") == set()
    assert shared(tmp_path / "3", tmp_path / "1") == {changed.name, gone.name}
    assert saves.read("2") == history


@pytest.mark.usefixtures("small")
def test_where_nothing_can_be_linked_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some file systems: each checkpoint has files of its own."""

    def refuse(*args: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    final = run(extend(trained(epochs(16)), epochs=3), [checkpoint(tmp_path)])

    first, _, last = sorted(tmp_path.iterdir())
    assert shared(last, first) == set()
    assert restore(tmp_path, workload()).history == final.history


@pytest.mark.usefixtures("small")
def test_a_save_that_fails_within_the_history_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As anywhere else in a save; what was there stays."""
    state = run(extend(trained(epochs(16)), epochs=1), [checkpoint(tmp_path)])

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(history_files, "_write", full)
    with pytest.warns(RuntimeWarning, match="could not be written .*: .*No space left on device"):
        run(extend(state, epochs=1), [checkpoint(tmp_path)])

    assert restore(tmp_path, workload()).history == state.history
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock")} == {"epoch-00002"}


@pytest.mark.usefixtures("small")
def test_after_a_save_that_failed_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the newest two that are there share nothing."""
    saves, history = Saves(tmp_path), History(epochs(16))
    saves.save("0", history)
    saves.save("1", history)
    with monkeypatch.context() as broken:
        broken.setattr(HistoryFiles, "complete", lambda writer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            saves.save("2", history)
    shutil.rmtree(tmp_path / "2")
    saves.save("3", history)

    assert shared(tmp_path / "3", tmp_path / "1") == set()
    assert saves.read("3") == history


@pytest.mark.usefixtures("small")
def test_another_history_has_files_of_its_own(tmp_path: Path) -> None:
    """Though they have the same names: what is linked is what it is known to be."""
    saves = Saves(tmp_path)
    for i, sign in enumerate((1, 1, -1, -1, -1, 1, 1, -1)):
        history = History({"valid_loss": sign * float(epoch)} for epoch in range(16))
        for more in range(3):
            history += epochs(1)
            saves.save(f"{i}-{more}", history)
            assert saves.read(f"{i}-{more}") == history[: epochs_in_files(len(history))]


@pytest.mark.usefixtures("small")
def test_the_command_line_verifies_these_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As each other file of a checkpoint."""
    run(extend(trained(epochs(16)), epochs=1), [checkpoint(tmp_path)])
    assert main(["checkpoints", str(tmp_path)]) == 0

    (path,) = tmp_path.iterdir()
    (path / name_of((0, 8))).write_bytes(b"{}\n" * 8)
    assert main(["checkpoints", str(tmp_path)]) == 1
    assert f"{name_of((0, 8))} is damaged" in capsys.readouterr().out


# --------------------------------------------------------------------------------- reading


def read(files: dict[str, bytes]) -> History[Any]:
    @contextlib.contextmanager
    def opened(name: str) -> Iterator[BinaryIO]:
        yield io.BytesIO(files[name])

    return read_history(files, opened)


WHOLE = {name_of((0, 4)): content_of(epochs(6)[:4]), name_of((4, 6)): content_of(epochs(6)[4:])}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({name_of((4, 6)): WHOLE[name_of((4, 6))]}, "not the part of the history that comes after 0 epochs"),
        ({name_of((0, 0)): b""}, "not the part of the history that comes after 0 epochs"),
        ({**WHOLE, name_of((5, 7)): b""}, "not the part of the history that comes after 4 epochs|after 6 epochs"),
        ({name_of((0, 3)): WHOLE[name_of((0, 4))]}, "it has more than 3 epochs"),
        ({name_of((0, 5)): WHOLE[name_of((0, 4))]}, "is damaged: JSONDecodeError"),
        ({name_of((0, 1)): b"[1]\n"}, "is no epoch"),
        ({name_of((0, 1)): b'{"a": 1}\n'}, "is damaged: CannotDecodeError"),
        ({name_of((0, 1)): b'{"$map": 1}\n'}, "is damaged: CannotDecodeError"),
        ({name_of((0, 1)): b"[" * 5000 + b"]" * 5000 + b"\n"}, "is damaged: "),
        ({name_of((0, 1)): b"\xff\n"}, "is damaged: JSONDecodeError"),
    ],
)
def test_files_that_are_no_history_are_refused(files: dict[str, bytes], sentence: str) -> None:
    """With digests that fit, too: each by its name."""
    with pytest.raises(CheckpointError, match=sentence):
        read(files)


def test_files_are_read_in_order() -> None:
    """Whatever the order in a manifest, and only those of a history."""
    assert read(dict(reversed(WHOLE.items()))) == epochs(6)
    assert read({}) == ()
    assert [is_history_file(name) for name in ("history-000000000-000000008.jsonl", "history.jsonl", STATE)] == [
        True,
        False,
        False,
    ]


@pytest.mark.usefixtures("small")
def test_a_state_that_goes_on_after_other_epochs_is_refused(tmp_path: Path) -> None:
    """A forged manifest without one of the files, say."""
    run(extend(trained(epochs(16)), epochs=1), [checkpoint(tmp_path)])
    (path,) = tmp_path.iterdir()
    body = json.loads((path / MANIFEST).read_bytes().partition(b"\n")[2])
    assert body["files"].pop(name_of((8, 16)))
    text = json.dumps(body).encode()
    (path / MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    assert name_of((8, 16)) not in manifest_of(path).files
    with pytest.raises(CheckpointError, match="its history goes on after 16 epochs, and there are 8"):
        restore(path, workload())


def test_a_line_is_an_epoch() -> None:
    """So that the history can be read without this library."""
    assert [orjson.loads(line) for line in content_of(epochs(2)).splitlines()] == [
        {"$map": [["valid_loss", 0.0]]},
        {"$map": [["valid_loss", 1 / 7]]},
    ]
