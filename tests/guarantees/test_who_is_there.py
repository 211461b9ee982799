"""One run at a time writes to a folder of checkpoints, or to a log; one that has ended is in nobody's way."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import (
    CheckpointError,
    EventLog,
    LogError,
    Phase,
    Scripted,
    State,
    Supervised,
    Transition,
    evaluate,
    iterate,
    on,
    replay,
    restore,
    run,
    start,
)
from fsm_train import locks as lock_files
from fsm_train.callbacks import checkpoint
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.lr_finder import find_lr
from tests.checkpoints.processes import FRESH
from tests.guarantees.one_weight import counting, weight


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(1), torch.zeros(1)


def trained(work: Any, folder: Path, *callbacks: Any, **settings: Any) -> State:
    return run(start(work, epochs=4, seed=0), [checkpoint(folder / "runs", keep=2), *callbacks], **settings)


def logged(work: Any, folder: Path, *callbacks: Any) -> State:
    return run(start(work, epochs=4, seed=0), callbacks, log=folder / "run.jsonl")


def both(work: Any, folder: Path, *callbacks: Any) -> State:
    return trained(work, folder, *callbacks, log=folder / "run.jsonl")


BOTH = pytest.mark.parametrize(("write", "error"), [(trained, CheckpointError), (logged, LogError)])
"""What is written: checkpoints, or a log."""


def in_a_process(write: Any, folder: Path, settings: dict[str, Any], there: Any, go_on: Any) -> None:
    """Train, and wait in the third epoch."""

    @on(Phase.EPOCH_BEGIN)
    def wait(state: State) -> None:
        if state.epoch == 2:
            there.set()
            go_on.wait(180)

    write(counting(DataLoader(Rows(), 4, **settings)), folder, wait)


@on(Phase.EPOCH_BEGIN, name="wait")
def as_replayed(state: State) -> None:
    """What `wait` decides."""


@contextmanager
def another_process(write: Any, folder: Path, **settings: Any) -> Iterator[Any]:
    """A process in the middle of a training; it goes on when this ends, unless it has been killed."""
    there, go_on = FRESH.Event(), FRESH.Event()
    process = FRESH.Process(target=in_a_process, args=(write, folder, settings, there, go_on))
    process.start()
    assert there.wait(180)
    try:
        yield process
    finally:
        if process.is_alive():  # the event would wait for one that was killed
            go_on.set()
        process.join(180)


@BOTH
def test_a_second_process_is_refused(write: Any, error: type[Exception], tmp_path: Path) -> None:
    """Before its first batch, with a sentence that names the first; what that wrote is as if it had been alone."""
    with another_process(write, tmp_path) as first:
        work = counting()
        with pytest.raises(error, match=rf"a run of process {first.pid}, since \d{{4}}-.*let .* end first") as caught:
            write(work, tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert weight(work) == 0.0
    assert first.exitcode == 0
    assert not list(tmp_path.rglob("*lock*"))
    if write is logged:
        replayed = replay(tmp_path / "run.jsonl", [as_replayed])
        assert (replayed.ok, replayed.state.epoch) == (True, 4)
    write(counting(), tmp_path)


@BOTH
@pytest.mark.parametrize("workers", [0, 2])
def test_one_that_was_killed_is_in_nobodys_way(
    write: Any, error: type[Exception], workers: int, tmp_path: Path
) -> None:
    """Also while workers that it had forked are still there."""
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    with another_process(write, tmp_path, **settings) as first:
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        assert list(tmp_path.rglob("*lock"))
        if write is trained:
            work = counting()
            final = run(restore(tmp_path / "runs", work), [checkpoint(tmp_path / "runs", keep=2)])
            assert (final.epoch, sorted(p.name for p in (tmp_path / "runs").iterdir())) == (
                4,
                ["epoch-00003", "epoch-00004"],
            )
        else:
            assert write(counting(), tmp_path).epoch == 4
    assert not list(tmp_path.rglob("*lock"))


@BOTH
def test_a_second_run_of_the_process_is_refused(write: Any, error: type[Exception], tmp_path: Path) -> None:
    """Until the first has ended: by its last state, an exception, or because its loop was left."""
    for end in ("to the end", "closed", "dropped", "raised"):
        folder = tmp_path / end
        callbacks = [checkpoint(folder / "runs")] if write is trained else []
        log = {"log": folder / "run.jsonl"} if write is logged else {}
        loop = iterate(start(counting(), epochs=2), callbacks, at=[Phase.BATCH_END], **log)  # type: ignore[arg-type]
        next(loop)
        with pytest.raises(error, match="another run of this process"):
            write(counting(), folder)
        if end == "to the end":
            for _ in loop:
                pass
        elif end == "raised":
            with pytest.raises(RuntimeError):
                loop.throw(RuntimeError("stop"))  # type: ignore[attr-defined]
        elif end == "closed":
            loop.close()  # type: ignore[attr-defined]
        else:
            del loop
        assert write(counting(), folder).epoch == 4


def test_a_run_that_is_refused_holds_nothing(tmp_path: Path) -> None:
    """One of its two folders is in use: the other one, and its log, are free afterwards."""
    loop = iterate(start(counting(), epochs=2), [checkpoint(tmp_path / "b")], at=[Phase.BATCH_END])
    next(loop)
    three = [checkpoint(tmp_path / "a", name="a"), checkpoint(tmp_path / "b", name="b"), checkpoint(tmp_path / "c")]
    with pytest.raises(CheckpointError, match="another run of this process"):
        run(start(counting(), epochs=1), three, log=tmp_path / "run.jsonl")
    run(
        start(counting(), epochs=1),
        [checkpoint(tmp_path / "a"), checkpoint(tmp_path / "c", name="c")],
        log=tmp_path / "run.jsonl",
    )
    (tmp_path / "no log").mkdir()
    (tmp_path / "no log" / "run.jsonl").write_text("a poem\n")
    for _ in range(2):
        with pytest.raises(LogError, match="it is no JSON"):
            run(start(Scripted(), epochs=1), log=tmp_path / "no log" / "run.jsonl")
    loop.close()  # type: ignore[attr-defined]


def test_a_folder_that_is_not_declared_is_held_from_the_first_save_on(tmp_path: Path) -> None:
    """One's own command: a save into the folder of another run fails, as one on a full disk does."""

    @on(Phase.BATCH_END)
    def save(state: State) -> Transition:
        return Transition(commands=(SaveCheckpoint(str(tmp_path), f"at-{state.iteration}"),))

    loop = iterate(start(counting(), epochs=3), [save], at=[Phase.EPOCH_END])
    next(loop)
    with pytest.raises(CheckpointError, match="another run of this process"):
        run(start(counting(), epochs=1), [checkpoint(tmp_path)])
    with pytest.warns(RuntimeWarning, match="at-1 could not be written to .*another run of this process"):
        final = run(start(counting(), epochs=1), [save])
    assert (final.phase, len(final.notes)) == (Phase.DONE, 1)
    loop.close()  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-1"]


def test_what_only_looks_takes_no_lock(tmp_path: Path) -> None:
    """find_lr, evaluate, restore, replay and a simulation go on beside a run; nor do these make folders."""
    with another_process(both, tmp_path):
        find_lr(start(counting(), epochs=1), steps=3)
        assert restore(tmp_path / "runs", counting()).epoch == 2
        evaluate(Supervised(*_parts(), valid=[(torch.ones(1, 1), torch.zeros(1, 1))]))
        replay(tmp_path / "run.jsonl", [checkpoint(tmp_path / "runs", keep=2), as_replayed])
        run(start(Scripted(), epochs=1), [checkpoint(tmp_path / "runs"), checkpoint(tmp_path / "new", name="n")])
    assert not (tmp_path / "new").exists()


def _parts() -> tuple[Any, ...]:
    model = nn.Linear(1, 1)
    return model, torch.optim.SGD(model.parameters(), lr=1.0), nn.MSELoss(), [(torch.ones(1, 1), torch.zeros(1, 1))]


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the training goes on."""
    import fcntl

    def none(descriptor: int, operation: int) -> None:
        raise OSError(lock_files.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert trained(counting(), tmp_path).phase is Phase.DONE
    assert "cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (b"", "another run"),
        (b"not JSON", "another run"),
        (b'{"who": "a run"}', "another run"),
        (b'{"who": "a run", "pid": 3, "host": "elsewhere", "since": 1e99}', "another run"),
        (b'{"who": "a run", "pid": 3, "host": "elsewhere", "since": 0}', "a run of process 3 on elsewhere, since 19"),
    ],
)
def test_whatever_stands_in_the_lock_file_there_is_a_sentence(said: bytes, sentence: str, tmp_path: Path) -> None:
    """A lock file is only words: who holds it is known to the operating system."""
    lock = lock_files.take(tmp_path / "lock")
    assert lock is not None
    assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()
    (tmp_path / "lock").write_bytes(said)
    with pytest.raises(lock_files.HeldError, match=sentence):
        lock_files.take(tmp_path / "lock")
    lock.release()
    again = lock_files.take(tmp_path / "lock")
    assert again is not None
    again.release()


def test_a_log_of_a_program_is_not_locked(tmp_path: Path) -> None:
    """A pipe is no file that somebody else could continue."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    final = run(start(Scripted(), epochs=1), log=EventLog(pipe))
    reader.join(60)
    assert final.phase is Phase.DONE
    assert read[0].count(b"\n") == 6
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
