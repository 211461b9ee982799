"""What a run writes to is removed or replaced in mid-training, or the process is forked: it goes on, or says so."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fsm_train import (
    CheckpointError,
    EventLog,
    LogError,
    Phase,
    Scripted,
    iterate,
    replay,
    restore,
    run,
    start,
)
from fsm_train import locks as lock_files
from fsm_train.callbacks import checkpoint
from fsm_train.eventlog import writer
from tests.guarantees.one_weight import counting, in_epoch, names


@contextmanager
def in_folder(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


# --------------------------------------------------------------------- the folder of checkpoints


@pytest.mark.parametrize("how", ["removed", "removed with its parents", "replaced"])
def test_a_folder_that_was_removed_or_replaced_is_made_and_held_again(how: str, tmp_path: Path) -> None:
    """No checkpoint after that is missing, and a second run is refused."""
    top = tmp_path / "a"
    folder = top / "b" / "runs"

    def pull() -> None:
        if how == "replaced":
            folder.rename(tmp_path / "old")
            folder.mkdir()
        elif how == "removed":
            shutil.rmtree(folder)
        else:
            shutil.rmtree(top)

    def refused() -> None:
        with pytest.raises(CheckpointError, match="another run of this process"):
            run(start(counting(), epochs=1), [checkpoint(folder)])

    final = run(start(counting(), epochs=6), [checkpoint(folder), in_epoch(epoch_3=pull, epoch_5=refused)])
    assert final.notes == ()
    assert {"epoch-00004", "epoch-00005", "epoch-00006"} <= {*names(folder)}
    assert restore(folder, counting()).epoch == 6
    assert ".lock" not in names(folder)


def test_a_folder_that_cannot_be_made_again_is_said_until_it_can(tmp_path: Path) -> None:
    """A file has its place for two epochs."""
    folder = tmp_path / "runs"

    def replace() -> None:
        shutil.rmtree(folder)
        folder.write_text("mine")

    with pytest.warns(RuntimeWarning, match="could not be written to .*File exists"):
        final = run(start(counting(), epochs=6), [checkpoint(folder), in_epoch(epoch_3=replace, epoch_5=folder.unlink)])
    assert [note.split()[2] for note in final.notes] == ["epoch-00003", "epoch-00004"]
    assert names(folder) == ["epoch-00005", "epoch-00006"]


def test_a_folder_without_locks_is_made_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a file system that has none."""
    monkeypatch.setattr("fsm_train.checkpoints.folder.take", lambda path: None)
    folder = tmp_path / "runs"
    final = run(start(counting(), epochs=4), [checkpoint(folder), in_epoch(epoch_3=lambda: shutil.rmtree(folder))])
    assert (final.notes, names(folder)) == ((), ["epoch-00003", "epoch-00004"])


def test_a_relative_path_begins_in_the_folder_where_the_run_began(tmp_path: Path) -> None:
    """Wherever the program goes meanwhile; nothing is left there, and no lock."""
    elsewhere, gone = tmp_path / "elsewhere", tmp_path / "gone"
    elsewhere.mkdir()
    with in_folder(tmp_path):
        callbacks = [checkpoint("runs"), in_epoch(epoch_3=lambda: os.chdir(elsewhere))]
        final = run(start(counting(), epochs=6), callbacks, log="run.jsonl")
    assert (final.notes, names(elsewhere)) == ((), [])
    assert names(tmp_path / "runs") == ["epoch-00004", "epoch-00005", "epoch-00006"]
    assert names(tmp_path) == ["elsewhere", "run.jsonl", "runs"]

    gone.mkdir()
    with in_folder(gone):
        gone.rmdir()
        assert run(start(counting(), epochs=1), [checkpoint(tmp_path / "runs")]).notes == ()


def test_a_folder_that_is_a_link_is_the_one_that_it_leads_to(tmp_path: Path) -> None:
    """It stays a link; a second run is refused by either name, and so is a second callback."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)

    def refused() -> None:
        with pytest.raises(CheckpointError, match="another run of this process"):
            run(start(counting(), epochs=1), [checkpoint(real)])
        with pytest.raises(ValueError, match="both write checkpoints to"):
            run(start(counting(), epochs=1), [checkpoint(link, name="a"), checkpoint(real, name="b")])

    final = run(start(counting(), epochs=4), [checkpoint(link), in_epoch(epoch_3=refused)])
    assert (final.notes, link.is_symlink()) == ((), True)
    assert names(real) == ["epoch-00002", "epoch-00003", "epoch-00004"]
    assert restore(link, counting()).epoch == restore(real, counting()).epoch == 4


@pytest.mark.parametrize("how", ["leads elsewhere", "is removed", "leads nowhere", "is what it led to"])
def test_a_link_is_followed_once(how: str, tmp_path: Path) -> None:
    """Wherever it leads later, all checkpoints of a run are in the folder to which it led when the run began."""
    real, other, link = tmp_path / "real", tmp_path / "other", tmp_path / "link"
    real.mkdir()
    other.mkdir()
    link.symlink_to(real)

    def change() -> None:
        link.unlink()
        if how == "leads elsewhere":
            link.symlink_to(other)
        elif how == "leads nowhere":
            link.symlink_to(tmp_path / "nowhere")
        elif how == "is what it led to":
            real.rename(link)

    final = run(start(counting(), epochs=6), [checkpoint(link, keep=6), in_epoch(epoch_3=change)])
    assert final.notes == ()
    there = {*names(real), *(names(link) if how == "is what it led to" else ())}
    assert there - {".lock"} == {f"epoch-{epoch:05d}" for epoch in range(1, 7)}
    assert restore(real, counting()).epoch == 6
    assert names(other) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_link_that_leads_nowhere_leads_to_a_folder_that_is_made(tmp_path: Path) -> None:
    """As any folder that is not there."""
    (tmp_path / "link").symlink_to(tmp_path / "new")
    run(start(counting(), epochs=1), [checkpoint(tmp_path / "link")])
    assert names(tmp_path / "new") == ["epoch-00001"]
    assert (tmp_path / "link").is_symlink()


# ------------------------------------------------------------------------------------- the log


@pytest.mark.parametrize("remove", [Path.unlink, lambda log: shutil.rmtree(log.parent)])
def test_a_log_that_was_removed_is_said(remove: Callable[[Path], None], tmp_path: Path) -> None:
    """The training goes on, and what is written afterwards is not lost in silence."""
    log = tmp_path / "logs" / "run.jsonl"
    with pytest.warns(RuntimeWarning, match="it was removed while it was written"):
        final = run(start(Scripted(), epochs=4), [in_epoch(epoch_3=lambda: remove(log))], log=log)
    assert (final.epoch, len(final.notes)) == (4, 1)
    assert not log.exists()


def test_a_log_that_never_had_a_name_is_written(tmp_path: Path) -> None:
    """Such as /dev/stdout, where a test runner has put a file that it removed at once."""
    with (tmp_path / "file").open("w+b") as file:
        (tmp_path / "file").unlink()
        final = run(start(Scripted(), epochs=1), log=f"/proc/self/fd/{file.fileno()}")
        assert final.notes == ()
        file.seek(0)
        assert len(file.readlines()) == 6


def test_a_path_that_no_log_can_have_is_a_log_error(tmp_path: Path) -> None:
    """Also where the system refuses to look."""
    with pytest.raises(LogError, match="cannot be written .*too long"):
        EventLog(tmp_path / ("x" * 300))


def test_a_log_is_locked_whatever_link_leads_to_it(tmp_path: Path) -> None:
    """The lock is that of the file."""
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "run.jsonl")
    (tmp_path / "run.jsonl").touch()
    locked: list[list[str]] = []
    look = in_epoch(epoch_1=lambda: locked.append(names(tmp_path)))
    run(start(Scripted(), epochs=1), [look], log=tmp_path / "link.jsonl")
    assert locked == [[".run.jsonl.lock", "link.jsonl", "run.jsonl"]]
    assert names(tmp_path) == ["link.jsonl", "run.jsonl"]


# ------------------------------------------------------------------------------------ lock files


@pytest.mark.parametrize("content", [b"mine", b'{"name": "of another tool"}'])
def test_a_lock_file_of_somebody_else_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    """It is locked, and neither written to nor removed."""
    (tmp_path / ".lock").write_bytes(content)
    loop = iterate(start(counting(), epochs=1), [checkpoint(tmp_path)], at=[Phase.BATCH_END])
    next(loop)
    with pytest.raises(CheckpointError, match="another run"):
        run(start(counting(), epochs=1), [checkpoint(tmp_path)])
    assert len(list(loop)) == 3
    assert (tmp_path / ".lock").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b'{"wh', b'{"who": "a run", "pid": 1, "host": "x", "since": 0}'])
def test_a_lock_file_that_a_crash_has_left_is_taken_over(content: bytes, tmp_path: Path) -> None:
    """With the number of a process that lives again, or with half of what was written."""
    (tmp_path / ".lock").write_bytes(content)
    run(start(counting(), epochs=1), [checkpoint(tmp_path)])
    assert names(tmp_path) == ["epoch-00001"]


@pytest.mark.parametrize("kind", ["folder", "link", "link to nowhere"])
def test_what_can_be_no_lock_file_is_an_error_before_the_first_batch(kind: str, tmp_path: Path) -> None:
    """And what it leads to is not touched."""
    mine = tmp_path / "mine"
    folder = tmp_path / "runs"
    folder.mkdir()
    if kind == "folder":
        (folder / ".lock").mkdir()
    else:
        (folder / ".lock").symlink_to(mine)
        if kind == "link":
            mine.write_text("three years")
    with pytest.raises(CheckpointError, match="no checkpoint can be written to"):
        run(start(counting(), epochs=1), [checkpoint(folder)])
    assert names(folder) == [".lock"]
    assert mine.exists() is (kind == "link")


def test_a_lock_that_is_not_in_place_removes_nothing(tmp_path: Path) -> None:
    """The file at its path is that of another run."""
    path = tmp_path / "lock"
    first = lock_files.take(path)
    assert first is not None
    assert first.in_place
    path.unlink()
    assert not first.in_place
    second = lock_files.take(path)
    assert second is not None
    first.release()
    assert second.in_place
    second.release()
    assert names(tmp_path) == []


def test_a_lock_file_that_cannot_be_read_is_taken_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says only serves the sentence."""
    path = tmp_path / "lock"
    path.write_bytes(b"")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "open", refuse)
    lock = lock_files.take(path)
    monkeypatch.undo()
    assert lock is not None
    lock.release()
    assert names(tmp_path) == []


# -------------------------------------------------------------------------------------- a fork


@pytest.mark.parametrize("how", ["at once", "by an exception", "at the end of the training"])
def test_a_process_that_was_forked_in_mid_training_disturbs_nothing(how: str, tmp_path: Path) -> None:
    """However the child ends: the log has each line once, the lock stays with the parent, and the saves are its own."""
    parent, folder, log = os.getpid(), tmp_path / "runs", tmp_path / "run.jsonl"
    statuses: list[int] = []

    def fork() -> None:
        with warnings.catch_warnings(action="ignore"):  # of threads: this child starts none that matters
            child = os.fork()
        if child == 0:
            if how == "at once":
                os._exit(0)
            if how == "by an exception":
                raise SystemExit(3)
        else:
            statuses.append(os.waitpid(child, 0)[1])

    def refused() -> None:
        if os.getpid() == parent:
            with pytest.raises(CheckpointError, match="another run of this process"):
                run(start(counting(), epochs=1), [checkpoint(folder)])

    callbacks = [checkpoint(folder, on_failure=True), in_epoch(epoch_3=fork, epoch_5=refused)]
    notes: tuple[str, ...] = ("it failed",)
    with warnings.catch_warnings(action="ignore"):
        try:
            final = run(start(counting(), epochs=6), callbacks, log=log)
            notes = final.notes
        finally:
            if os.getpid() != parent:
                said = ["forked" in note for note in notes]
                os._exit(0 if how == "by an exception" or said == [True] * 5 else 1)
    assert (statuses, final.notes) == ([0], ())
    assert names(folder) == ["epoch-00004", "epoch-00005", "epoch-00006"]
    assert names(tmp_path) == ["run.jsonl", "runs"]
    assert replay(log, [checkpoint(folder, on_failure=True), in_epoch()]).ok


def test_what_a_process_has_forked_holds_no_lock_and_writes_no_line(tmp_path: Path) -> None:
    """By the number of the process that took the lock and opened the log."""
    lock = lock_files.take(tmp_path / "lock")
    assert lock is not None
    object.__setattr__(lock, "_pid", -1)
    lock.release()
    assert lock.in_place
    object.__setattr__(lock, "_pid", os.getpid())
    lock.release()
    assert names(tmp_path) == []

    log = EventLog(tmp_path / "run.jsonl")
    with pytest.warns(RuntimeWarning, match="forked from the one that writes the log"):
        run(start(Scripted(), epochs=3), [in_epoch(epoch_2=lambda: setattr(log, "_pid", -1))], log=log)
    assert len((tmp_path / "run.jsonl").read_bytes().splitlines()) == 4


def test_lines_that_wait_are_left_to_the_parent(tmp_path: Path) -> None:
    """What a forked process does first: from then on, what it has of the file leads nowhere."""
    log = tmp_path / "run.jsonl"

    def leave() -> None:
        writer._leave_to_parent()

    run(start(Scripted(), epochs=3), [in_epoch(epoch_2=leave)], log=log)
    assert len(log.read_bytes().splitlines()) == 4
    EventLog(log).leave_to_parent()  # no run is under way


def test_a_run_within_a_run_is_refused_the_same_folder_and_log(tmp_path: Path) -> None:
    """Before its first batch; the outer one goes on."""
    came: list[str] = []

    def inner() -> None:
        for settings in ({"callbacks": [checkpoint(tmp_path / "runs")]}, {"log": tmp_path / "run.jsonl"}):
            with pytest.raises((CheckpointError, LogError), match="another run of this process") as caught:
                run(start(counting(), epochs=1), **settings)  # type: ignore[arg-type]
            came.append(type(caught.value).__name__)

    callbacks = [checkpoint(tmp_path / "runs"), in_epoch(epoch_2=inner)]
    final = run(start(counting(), epochs=3), callbacks, log=tmp_path / "run.jsonl")
    assert (came, final.notes) == (["CheckpointError", "LogError"], ())
