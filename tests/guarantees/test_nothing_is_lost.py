"""Whatever the disk does, the training goes on, what was there stays, and what failed is known and said."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    CheckpointError,
    NoCheckpointError,
    Phase,
    State,
    Supervised,
    Transition,
    on,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints import manifest
from fsm_train.core.commands import SaveCheckpoint
from tests.checkpoints.crowd import crowded
from tests.guarantees.one_weight import counting, in_epoch, names, quiet, weight
from tests.how_long import THOROUGH


def wide() -> Supervised:
    """A model whose tensors are some hundred kilobytes."""
    torch.manual_seed(0)
    model = nn.Linear(100, 1000)
    data = [(torch.ones(2, 100), torch.zeros(2, 1000))]
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), data)


# ------------------------------------------------------------------------ a disk that is full


def limited(size: int) -> Callable[[], None]:
    """Lets no file be larger, in bytes: what is written beyond fails, as on a full disk."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))


@pytest.mark.long
@pytest.mark.parametrize("size", range(0, 450_000, 15_000 if THOROUGH else 90_000))
def test_a_full_disk_within_torch_save(size: int, tmp_path: Path) -> None:
    """At whatever level: each failure is a warning and a note, what was there stays, and then it goes on."""
    fills, empties = limited(size), limited(-1)
    try:
        with pytest.warns(RuntimeWarning, match="could not be written") as caught:
            final = run(
                start(wide(), epochs=6, seed=0),
                [checkpoint(tmp_path, keep=6), in_epoch(epoch_3=fills, epoch_5=empties)],
            )
    finally:
        empties()
    assert final.phase is Phase.DONE
    assert len(caught) == len(final.notes) == 2
    assert ["epoch-00003" in final.notes[0], "epoch-00004" in final.notes[1]] == [True, True]
    assert names(tmp_path) == [f"epoch-{epoch:05d}" for epoch in (1, 2, 5, 6)]
    assert restore(tmp_path, wide()).epoch == 6


def test_threads_that_cannot_start_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has no more of them for a while."""
    started = threading.Thread.start

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    gone = in_epoch(
        epoch_2=lambda: monkeypatch.setattr(threading.Thread, "start", no_more),
        epoch_3=lambda: monkeypatch.setattr(threading.Thread, "start", started),
    )
    with pytest.warns(RuntimeWarning, match="epoch-00002 could not be written to .*: can't start new thread"):
        final = run(start(counting(), epochs=3), [checkpoint(tmp_path), gone])
    assert (final.epoch, len(final.notes)) == (3, 1)
    assert names(tmp_path) == ["epoch-00001", "epoch-00003"]


def test_a_disk_that_stays_full_piles_nothing_up(tmp_path: Path) -> None:
    """Neither files nor notes: the last note counts those that are not named."""
    (tmp_path / "epoch-00001").mkdir()
    for i in range(2, 31):
        (tmp_path / f"epoch-{i:05d}").write_text("mine")
    with quiet():
        final = run(start(counting(), epochs=30), [checkpoint(tmp_path)])
    assert len(final.notes) == 21
    assert final.notes[-1] == "10 further checkpoints could not be written"
    assert len(names(tmp_path)) == 30
    assert final.memory["checkpoint"].files == ()  # type: ignore[attr-defined]


@pytest.mark.parametrize("nth", [1, 4, 8, 12])
def test_ctrl_c_twice_within_a_save_is_a_keyboard_interrupt(nth: int, tmp_path: Path) -> None:
    """And not what torch.save makes of it; what was there stays, and nothing half-written is left."""
    run(start(wide(), epochs=1, seed=0), [checkpoint(tmp_path)])
    calls = []

    def twice(frame: Any, event: str, called: Any) -> None:
        within = frame
        while within is not None and within.f_code is not torch.save.__code__:
            within = within.f_back
        if event == "c_call" and called.__name__ == "write" and within is not None:
            calls.append(called)
        if len(calls) == nth or (event == "return" and frame.f_code is torch.save.__code__):
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setprofile(twice)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(start(wide(), epochs=3, seed=0), [checkpoint(tmp_path, every_epochs=2)])
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)
    assert names(tmp_path) == ["epoch-00001"]
    assert restore(tmp_path, wide()).epoch == 1


# ------------------------------------------------------------------------- a save that failed


@pytest.mark.parametrize(
    ("failing", "settings", "there"),
    [
        ({1}, {"monitor": "valid_loss", "keep": 1, "last": 0}, ["epoch-00002"]),
        ({2}, {"monitor": "valid_loss", "keep": 1, "last": 0}, ["epoch-00001"]),
        ({2, 3}, {"keep": 2}, ["epoch-00005", "epoch-00006"]),
        ({6}, {"keep": 2}, ["epoch-00004", "epoch-00005"]),
        ({5, 6}, {"keep": 1, "last": 1}, ["epoch-00004"]),
        ({1}, {"monitor": "valid_loss", "keep": 1}, ["epoch-00002", "step-00000005", "step-00000006"]),
    ],
)
def test_a_save_that_failed_is_not_counted(
    failing: set[int], settings: dict[str, Any], there: list[str], tmp_path: Path
) -> None:
    """The memory says what is on disk, also after the last one; the log has the failure, and replays."""
    fills, empties = limited(10), limited(-1)
    folder, log = tmp_path / "runs", tmp_path / "run.jsonl"
    callbacks = [
        checkpoint(folder, **settings),
        in_epoch(**{f"epoch_{i}": fills if i in failing else empties for i in range(1, 7)}),
    ]
    work = counting(valid="monitor" in settings)

    try:
        with quiet():
            final = run(start(work, epochs=6, seed=0), callbacks)
    finally:
        empties()
    assert names(folder) == there
    assert [name for name, _ in final.memory["checkpoint"].files] == there  # type: ignore[attr-defined]

    with quiet():
        logged = run(
            start(counting(valid="monitor" in settings), epochs=6), _failing_saves(folder, failing, settings), log=log
        )
    assert "unsaved:checkpoint" in log.read_text()
    assert replay(log, _failing_saves(folder, failing, settings)).ok
    assert replay(log, _failing_saves(folder, failing, settings)).state.memory == logged.memory


def _failing_saves(folder: Path, failing: set[int], settings: dict[str, Any]) -> list[Any]:
    """Callbacks of a training in which the saves of these epochs fail: a file of one's own is in the way."""
    elsewhere = folder.with_name("other")
    elsewhere.mkdir(exist_ok=True)
    for epoch in failing:
        (elsewhere / f"epoch-{epoch:05d}").write_text("mine")
        (elsewhere / f"step-{epoch:08d}").write_text("mine")
    return [checkpoint(elsewhere, **settings)]


def test_ones_own_saver_is_told_too() -> None:
    """By the fact that has its name, at any phase; of other savers it says nothing."""
    seen: list[tuple[str, float]] = []
    place = Path(os.devnull) / "runs"  # no folder can be made there

    @on(Phase.BATCH_END, Phase.EPOCH_END, needs={"unsaved:mine"}, commands={SaveCheckpoint})
    def mine(state: State) -> Transition | None:
        seen.append((state.phase.value, state.facts.get("unsaved:mine", 0.0)))
        if state.phase is Phase.BATCH_END:
            return Transition(commands=(SaveCheckpoint(str(place), "now", by="mine"),))
        return None

    with pytest.warns(RuntimeWarning, match="no checkpoint can be written to"):
        final = run(start(counting(), epochs=2), [mine])
    assert seen == [("batch_end", 0.0), ("epoch_end", 1.0), ("batch_end", 1.0), ("epoch_end", 1.0)]
    assert len(final.notes) == 1  # the same sentence twice


# ------------------------------------------------------------------ what others have in the folder


def test_two_savers_in_one_folder_are_refused(tmp_path: Path) -> None:
    """However the folder is written; several folders are none of that."""
    other = tmp_path / "b" / ".." / "a"
    for first, second in [("a", tmp_path / "a"), (tmp_path / "a", f"{tmp_path / 'a'}/"), (tmp_path / "a", other)]:
        work, folder = counting(), tmp_path / first
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(
            ValueError, match=r"'best' and 'last' both write .*last=…\), which keeps the best"
        ) as caught:
            run(
                start(work, epochs=1),
                [checkpoint(folder, monitor="train_loss", name="best"), checkpoint(second, name="last")],
            )
        assert str(tmp_path) in str(caught.value)
        assert weight(work) == 0.0

    both = [checkpoint(tmp_path / "best", monitor="train_loss", keep=1, name="best"), checkpoint(tmp_path / "last")]
    run(start(counting(), epochs=4), both)
    assert [len(names(tmp_path / name)) for name in ("best", "last")] == [2, 3]


def own_folder(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.txt").write_text("three years")
    return path / "thesis.txt"


def own_file(path: Path) -> Path:
    path.write_text("three years")
    return path


def link_to_ones_own(path: Path) -> Path:
    elsewhere = own_folder(path.with_name("elsewhere")).parent
    path.symlink_to(elsewhere)
    return path / "thesis.txt"


def file_with_a_name_of_ours(path: Path) -> Path:
    path.mkdir()
    (path / "state.json").write_text("three years")
    return path / "state.json"


def manifest_of_another_tool(path: Path) -> Path:
    path.mkdir()
    (path / "manifest").write_text("three years")
    return path / "manifest"


def file_in_a_checkpoint(path: Path) -> Path:
    run(start(counting(), epochs=1), [checkpoint(path.parent)])
    return own_file(path / "thesis.txt")


@pytest.mark.parametrize(
    "make",
    [own_folder, own_file, link_to_ones_own, file_with_a_name_of_ours, manifest_of_another_tool, file_in_a_checkpoint],
)
@pytest.mark.parametrize("name", ["epoch-00001", ".writing-mine-0123abcd", ".replaced-epoch-00001-0123abcd"])
def test_what_is_no_checkpoint_is_never_touched(make: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    """Whatever is called like one: it stays as and where it is, and the save that it is in the way of fails."""
    if make is file_in_a_checkpoint and name != "epoch-00001":
        pytest.skip("checkpoints are called otherwise")
    mine = make(tmp_path / name)
    with quiet():
        final = run(start(counting(), epochs=3), [checkpoint(tmp_path, keep=1)])
    assert mine.read_text() == "three years"
    assert any("epoch-00001" in note for note in final.notes) is (name == "epoch-00001")
    with quiet():
        assert restore(tmp_path, counting()).epoch == 3


def test_a_file_that_one_put_into_a_checkpoint_keeps_it_from_being_dropped(tmp_path: Path) -> None:
    """What one has added is not removed with it."""
    mine: list[Path] = []
    put = in_epoch(epoch_2=lambda: mine.append(own_file(tmp_path / "epoch-00001" / "thesis.txt")))
    run(start(counting(), epochs=5), [checkpoint(tmp_path, keep=2), put])
    assert mine[0].read_text() == "three years"
    assert names(tmp_path) == ["epoch-00001", "epoch-00004", "epoch-00005"]


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets nobody look into a folder, root included."""
    hidden: list[str] = []
    for name in ("stat", "listdir", "scandir", "open"):
        function = getattr(os, name)

        def instead(path: Any = ".", *args: Any, _function: Any = function, **kwargs: Any) -> Any:
            if any(str(path).startswith(f"{place}/") for place in hidden):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return _function(path, *args, **kwargs)

        monkeypatch.setattr(os, name, instead)
    return lambda path: hidden.append(str(path))


def test_what_one_may_not_look_into_is_passed_over(tmp_path: Path, unreadable: Callable[[Path], None]) -> None:
    """A lost+found of root's; and an unreadable checkpoint is passed over for the one before, and said."""
    (tmp_path / "lost+found").mkdir()
    unreadable(tmp_path / "lost+found")
    final = run(start(counting(), epochs=2), [checkpoint(tmp_path)])
    assert final.notes == ()
    with pytest.warns(RuntimeWarning, match=r"lost\+found is passed over: Permission denied"):
        assert restore(tmp_path, counting()).epoch == 2

    unreadable(tmp_path / "epoch-00002")
    with pytest.warns(RuntimeWarning, match="epoch-00002 is passed over: Permission denied"):
        assert restore(tmp_path, counting()).epoch == 1
    with pytest.raises(CheckpointError, match="epoch-00002 cannot be read: Permission denied"):
        restore(tmp_path / "epoch-00002", counting())


@pytest.mark.parametrize("where", ["a file", "a file/runs", "a file/runs/more"])
def test_a_folder_that_can_be_none_is_an_error_before_the_first_batch(where: str, tmp_path: Path) -> None:
    """With the path; one that is not there is made."""
    (tmp_path / "a file").write_text("mine")
    work = counting()
    with pytest.raises(CheckpointError, match=f"no checkpoint can be written to {tmp_path / where}"):
        run(start(work, epochs=1), [checkpoint(tmp_path / where)])
    assert weight(work) == 0.0
    run(start(work, epochs=1), [checkpoint(tmp_path / "new" / "runs")])
    assert names(tmp_path / "new" / "runs") == ["epoch-00001"]


@pytest.mark.parametrize(
    ("path", "error"), [("", ValueError), ("runs\0x", ValueError), (b"runs", TypeError), (3, TypeError)]
)
def test_a_path_of_no_folder_is_refused_when_it_is_given(path: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        checkpoint(path)


# ----------------------------------------------------------------------- reading beside a writer


@pytest.mark.parametrize("left", [True, False])
def test_a_checkpoint_may_vanish_at_any_moment(left: bool, tmp_path: Path) -> None:
    """At whatever opening of a file it is gone: the one before is used, and said; else it is a CheckpointError."""
    source = tmp_path / "source"
    run(start(counting(), epochs=2), [checkpoint(source)])
    came: list[str] = []
    armed: list[int] = []
    newest = tmp_path

    def vanish(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and armed and isinstance(arguments[0], str | Path) and Path(arguments[0]).parent == newest:
            armed[0] -= 1
            if armed[0] == 0:
                armed.clear()
                shutil.rmtree(newest)

    sys.addaudithook(vanish)  # it stays, and does nothing when the test is over
    for opening in range(1, 9):
        folder = tmp_path / str(opening)
        shutil.copytree(source, folder)
        if not left:
            shutil.rmtree(folder / "epoch-00001")
        newest = folder / "epoch-00002"
        armed[:] = [opening]
        with quiet():
            try:
                came.append(str(restore(folder, counting()).epoch))
            except (CheckpointError, NoCheckpointError) as error:
                came.append(type(error).__name__)
        if armed:
            armed.clear()
            assert came.pop() == "2"
            break
    assert len(came) >= 3
    assert {*came} == ({"1"} if left else {"CheckpointError"})


def test_what_is_verified_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is replaced by another one while it is read is never mixed with that."""
    run(start(counting(), epochs=1), [checkpoint(tmp_path / "one")])
    run(start(counting(), epochs=1, seed=1), [checkpoint(tmp_path / "other")])
    whole = manifest.verified

    @contextmanager
    def replaced(found: Any, name: str) -> Iterator[Any]:
        with whole(found, name) as file:
            shutil.rmtree(tmp_path / "one" / "epoch-00001")
            shutil.copytree(tmp_path / "other" / "epoch-00001", tmp_path / "one" / "epoch-00001")
            yield file

    monkeypatch.setattr("fsm_train.checkpoints.reading.verified", replaced)
    with pytest.raises(CheckpointError, match="does not match its checksum|bytes and not"):
        restore(tmp_path / "one" / "epoch-00001", counting())


def test_those_that_a_writer_dropped_meanwhile_are_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that were listed are gone, and newer ones are there."""
    run(start(counting(), epochs=3), [checkpoint(tmp_path, keep=3)])
    (tmp_path / "epoch-00003").rename(tmp_path.with_name("later"))
    listed = manifest.list_folder

    def then_it_moves_on(folder: Path) -> Any:
        found = listed(folder)
        if tmp_path.with_name("later").exists():
            for name in ("epoch-00001", "epoch-00002"):
                shutil.rmtree(tmp_path / name)
            tmp_path.with_name("later").rename(tmp_path / "epoch-00003")
        return found

    monkeypatch.setattr("fsm_train.checkpoints.api.list_folder", then_it_moves_on)
    with pytest.warns(RuntimeWarning, match="continuing from .*epoch-00003"):
        assert restore(tmp_path, counting()).epoch == 3


class Looks:
    """Counts how often the file system is asked something, and the names that it gives for a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("stat", "lstat", "open", "listdir", "scandir", "mkdir", "rename", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(io, "open", self._counted(io.open))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            found = function(*args, **kwargs)
            if isinstance(found, list):
                self.count += len(found)
            elif not isinstance(found, int | io.IOBase | os.stat_result | None):
                entries = [*found]  # of scandir
                self.count += len(entries)
                return contextlib.nullcontext(iter(entries))
            return found

        return instead


def looks_of_each_save(folder: Path, monkeypatch: pytest.MonkeyPatch, fill: Callable[[], None], epochs: int) -> Any:
    """How often each save looks, from the first batch on: some succeed, and with `fill` the third and fourth fail."""
    counts: list[int] = []
    with monkeypatch.context() as patched, quiet():
        looks = Looks(patched)

        @on(Phase.EPOCH_BEGIN, Phase.TRAIN_END)
        def count(state: State) -> None:
            counts.append(looks.count)

        some = in_epoch(epoch_3=fill, epoch_5=limited(-1))
        try:
            run(start(counting(), epochs=epochs), [checkpoint(folder, keep=2), some, count])
        finally:
            limited(-1)()
    return [after - before for before, after in itertools.pairwise(counts)]


@pytest.mark.parametrize("fails", [False, True])
def test_a_save_costs_the_same_however_many_are_there(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first save on, also after saves that failed: it looks beside a thousand as often as beside ten."""
    fill = limited(10) if fails else lambda: None
    looks = []
    for neighbours in (10, 1000):
        folder = crowded(tmp_path / str(neighbours), neighbours)
        own_folder(folder / ".writing-mine-0123abcd")
        looks.append(looks_of_each_save(folder, monkeypatch, fill, 7))
    assert looks[0] == looks[1]
    assert len(looks[0]) == 7
    assert 10 < min(looks[0]) <= max(looks[0]) < 100


def test_checkpoints_that_were_there_are_older(tmp_path: Path) -> None:
    """Whatever their numbers: they are read before the first batch, and again if the folder is replaced."""
    crowded(tmp_path / "runs", 30)
    crowded(tmp_path / "other", 60)

    def replace() -> None:
        (tmp_path / "runs").rename(tmp_path / "old")
        (tmp_path / "other").rename(tmp_path / "runs")

    run(start(counting(), epochs=4), [checkpoint(tmp_path / "runs"), in_epoch(epoch_3=replace)])
    newest = [c.path.name for c in manifest.list_folder(tmp_path / "runs").checkpoints[:3]]
    assert newest == ["epoch-00004", "epoch-00003", "older-00059"]
    assert manifest.list_folder(tmp_path / "old").checkpoints[0].path.name == "epoch-00002"


# ------------------------------------------------------------------------ two to go on from


STEPS = [(torch.ones(1, 1), torch.zeros(1, 1))] * 4


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({}, 4),
        ({"monitor": "valid_loss"}, 4),
        ({"monitor": "valid_loss", "mode": "max"}, 4),
        ({"every_steps": 1}, 1),
        ({"every_epochs": None, "every_steps": 2}, 2),
        ({"monitor": "valid_loss", "every_steps": 1}, 1),
        ({"keep": 1}, 4),
    ],
)
def test_a_damaged_file_costs_one_interval_at_most(settings: dict[str, Any], interval: int, tmp_path: Path) -> None:
    """By default the newest two are there, at any moment of a training, whatever their scores."""
    checked = 0

    @on(Phase.BATCH_BEGIN)
    def damage(state: State) -> None:
        nonlocal checked
        whole = tmp_path / "whole"
        written = [p for p in whole.iterdir() if p.name[0] != "."]
        if len(written) < 2:
            return
        copy = tmp_path / f"copy-{state.iteration}"
        shutil.copytree(whole, copy)
        newest = max((p for p in copy.iterdir() if p.name[0] != "."), key=lambda p: manifest.manifest_of(p).number)
        (newest / "tensors.pt").write_bytes(b"damaged")
        resumed = restore(copy, counting(STEPS, valid="monitor" in settings))
        assert state.iteration - resumed.iteration <= 2 * interval - 1 + (state.iteration % 4 == 0) * interval
        checked += 1

    work = counting(STEPS, valid="monitor" in settings)
    with quiet():
        run(start(work, epochs=4, seed=0), [checkpoint(tmp_path / "whole", **settings), damage])
    assert checked > 4
