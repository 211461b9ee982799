"""Signals, and what else ends a run early, at each place: what was saved stays, locks are free, a resume is exact."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import (
    CallbackError,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    ablate,
    extend,
    on,
    replay,
    restore,
    run,
    start,
)
from fsm_train import locks as lock_files
from fsm_train.callbacks import checkpoint, ema
from fsm_train.checkpoints import writing
from fsm_train.core.callback import Callback
from fsm_train.data import reproducible
from tests.checkpoints.faulty_disk import FaultyDisk
from tests.guarantees.one_weight import counting, in_epoch, names, weight
from tests.how_long import SHARE, step_through
from tests.models import diabetes, same_weights

EPOCHS = 4


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[list[int]]:
    """The program's own: Ctrl-C is KeyboardInterrupt, and SIGTERM is noted in this list."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def ctrl_c(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def saving(folder: Path, **settings: Any) -> list[Callback[Any]]:
    return [checkpoint(folder, keep=2, **settings)]


def trained(work: Supervised, folder: Path, *others: Callback[Any]) -> State:
    state = start(work, epochs=EPOCHS, seed=0)
    return run(state, [*saving(folder, on_failure=True), *others], log=folder / "run.jsonl")


def went_on(folder: Path, *, replayed: bool = True) -> None:
    """Resume what is saved, or begin anew if nothing is: it ends as the undisturbed training, and nothing is left."""
    work = counting()
    there = folder.is_dir() and any(name.startswith(("epoch", "step")) for name in names(folder))
    state = restore(folder, work) if there else start(work, epochs=EPOCHS, seed=0)
    callbacks = saving(folder, on_failure=True)
    final = run(state, callbacks, log=folder / "run.jsonl")
    assert (final.phase, weight(work)) == (Phase.DONE, float(EPOCHS))
    assert all(note.startswith("what callbacks asked for at epoch_end, where") for note in final.notes)
    run(extend(final, epochs=1), callbacks, log=folder / "run.jsonl")  # whose save removes what the last one left
    assert not [name for name in names(folder) if name.startswith(".")]
    assert not replayed or replay(folder / "run.jsonl", callbacks).ok
    assert restore(folder, counting()).epoch == EPOCHS + 1


def places(folder: Path, monkeypatch: pytest.MonkeyPatch, begin: int) -> Sequence[int]:
    """The numbers of what is done to files in a training: before a save, in its temporary folder, between renames, …

    In a short run these are some of them, from this number on.
    """
    with monkeypatch.context() as patched:
        faulty = FaultyDisk(folder, ctrl_c, patched, looks=False)
        trained(counting(), folder)
    assert {"mkdir", "rename", "unlink", "rmdir", "fsync", "write"} <= {*faulty.calls}
    count = len(faulty.calls)
    return (*range(begin if SHARE < 1 else 1, count, step_through(few=31)), count)


# -------------------------------------------------------------------------- signals in a save


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("more", [0, 1, 6])
def test_ctrl_c_twice_at_any_file(more: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is KeyboardInterrupt, also if it comes again `more` calls later, while what was begun is cleaned away."""
    interrupted, threads = 0, {*threading.enumerate()}  # others, which earlier tests may have left
    for place in places(tmp_path / "undisturbed", monkeypatch, 1 + 5 * more + 3 * after):
        folder = tmp_path / str(place)
        numbers = {place, place + more}
        with monkeypatch.context() as patched:
            faulty = FaultyDisk(folder, lambda: ctrl_c(2), patched, numbers, after=after, looks=False)
            error = interruption_of(lambda folder=folder: trained(counting(), folder))
        if error is None:
            assert len(faulty.calls) < place, (place, faulty.calls[-1])
            continue
        interrupted += 1
        assert {*threading.enumerate()} <= threads, place
        went_on(folder, replayed=False)  # while the exception is there, with all the frames that it came through
        assert error.__traceback__, place
    assert interrupted > 2


def interruption_of(call: Callable[[], object]) -> KeyboardInterrupt | None:
    try:
        call()
    except KeyboardInterrupt as error:
        return error
    return None


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_at_any_file(
    number: signal.Signals, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save is finished, and the training is suspended at the end of its batch; or it had ended, which is said."""
    phases = []
    for place in places(tmp_path / "undisturbed", monkeypatch, 2 + number + 7 * after):
        folder = tmp_path / str(place)
        with monkeypatch.context() as patched:
            FaultyDisk(folder, lambda: signal.raise_signal(number), patched, {place}, after=after, looks=False)
            final = trained(counting(), folder)
        phases.append(final.phase)
        if final.phase is Phase.SUSPENDED:
            assert final.reason == f"interrupted by {number.name}", place
            assert final.notes == (), place
        else:
            assert any(number.name in note for note in final.notes), (place, final.notes)
        if final.iteration:
            assert restore(folder, counting()).iteration == final.iteration, place
        went_on(folder)
    assert phases.count(Phase.SUSPENDED) > len(phases) / 2
    assert Phase.DONE in phases


def test_ctrl_c_while_the_thread_that_hashes_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends all the same: a process does not end before its threads."""
    submit = writing.ThreadPoolExecutor.submit

    def interrupted(pool: Any, *args: Any) -> Any:
        submit(pool, *args)
        ctrl_c(2)

    monkeypatch.setattr(writing.ThreadPoolExecutor, "submit", interrupted)
    done = threading.Event()
    threads = {*threading.enumerate()}  # others, which earlier tests may have left
    releases = threading.Timer(30, lambda: done.set() or os._exit(3))  # type: ignore[func-returns-value]
    releases.daemon = True
    releases.start()
    with pytest.raises(KeyboardInterrupt):
        trained(counting(), tmp_path)
    releases.cancel()
    releases.join()
    monkeypatch.undo()
    assert {*threading.enumerate()} <= threads
    went_on(tmp_path)


# ---------------------------------------------------------------------- SETUP and TEARDOWN


def at_phase(phase: Phase, happens: Callable[[], object]) -> Callback[Any]:
    @on(phase)
    def meanwhile(state: State) -> None:
        happens()

    return meanwhile


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", [Phase.SETUP, Phase.TRAIN_BEGIN])
def test_a_signal_before_the_first_batch(number: signal.Signals, phase: Phase, tmp_path: Path) -> None:
    """The first batch is trained, as no place before it can be resumed at."""
    work = counting()
    once = iter([lambda: signal.raise_signal(number)])
    state = trained(work, tmp_path, at_phase(phase, lambda: next(once, lambda: None)()))
    assert (state.phase, state.iteration, weight(work)) == (Phase.SUSPENDED, 1, 1.0)
    final = run(state, saving(tmp_path, on_failure=True), log=tmp_path / "run.jsonl")
    assert (final.phase, weight(work)) == (Phase.DONE, float(EPOCHS))
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_save_of_a_failed_training(
    number: signal.Signals, own_handlers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved whole; then the error comes, and the signal is handed to the program."""
    with monkeypatch.context() as patched:

        def broken() -> None:
            FaultyDisk(tmp_path, lambda: signal.raise_signal(number), patched, {6}, looks=False)
            fail()

        expected = KeyboardInterrupt if number == signal.SIGINT else Exception
        with pytest.raises(expected) as caught:
            trained(counting(), tmp_path, in_epoch(epoch_3=broken))
    error = caught.value if number == signal.SIGTERM else caught.value.__context__
    assert "ZeroDivisionError" in str(error)
    assert own_handlers == [signal.SIGTERM] * (number == signal.SIGTERM)
    assert any(name.endswith("-failed") for name in names(tmp_path))
    assert restore(tmp_path, counting()).epoch == 2
    went_on(tmp_path, replayed=False)  # it has another callback


@pytest.mark.parametrize("place", range(1, 20, 3))
def test_ctrl_c_twice_in_the_save_of_a_failed_training(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever does not want to wait for that either; the checkpoints from before stay."""

    def broken() -> None:
        FaultyDisk(tmp_path, lambda: ctrl_c(2), monkeypatch, {place}, looks=False)
        fail()

    with pytest.raises(KeyboardInterrupt) as caught:
        trained(counting(), tmp_path, in_epoch(epoch_3=broken))
    monkeypatch.undo()
    assert caught.value.__context__ is not None
    assert {"epoch-00001", "epoch-00002"} <= {*names(tmp_path)}
    went_on(tmp_path)


# ------------------------------------------------------------------------------------- locks


def free(folder: Path) -> None:
    for name in (".lock", ".run.jsonl.lock"):
        lock = lock_files.take(folder / name)
        assert lock is not None
        lock.release()


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("where", ["before", "within", "after", "the words"])
def test_ctrl_c_while_a_lock_is_taken_leaves_none(
    where: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that of the folder nor that of the log, though the exception is still there."""
    flock, taken, left = fcntl.flock, lock_files.take, iter([nth])

    def now() -> bool:
        nonlocal left
        number = next(left, 0)
        left = iter([number - 1])
        return number == 1

    def instead(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_UN or not now():
            flock(descriptor, operation)
            return
        if where == "within":
            flock(descriptor, operation)
        ctrl_c(2)

    def take(*args: Any) -> Any:
        lock = taken(*args)
        if now():
            ctrl_c(2)
        return lock

    def words(*args: Any, **kwargs: Any) -> str:
        if now():
            ctrl_c(2)
        return "{}"

    if where in ("before", "within"):
        monkeypatch.setattr(fcntl, "flock", instead)
    elif where == "the words":
        monkeypatch.setattr(lock_files.json, "dumps", words)
    else:
        monkeypatch.setattr("fsm_train.checkpoints.folder.take", take)
        monkeypatch.setattr("fsm_train.eventlog.writer.take", take)
    with pytest.raises(KeyboardInterrupt):
        trained(counting(), tmp_path)
    monkeypatch.undo()
    free(tmp_path)
    went_on(tmp_path)


@pytest.mark.parametrize("where", ["a callback", "the workload", "the machine"])
def test_what_fails_in_setup_leaves_no_lock(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the workload can be run again at once."""
    work = counting()
    if where == "the workload":
        monkeypatch.setattr(work, "prepare", lambda *_: fail())
    if where == "the machine":
        monkeypatch.setattr(State, "draft", lambda *_: fail())
    fails = [at_phase(Phase.SETUP, fail)] if where == "a callback" else []
    with pytest.raises((ZeroDivisionError, CallbackError)) as caught:
        trained(work, tmp_path, *fails)
    monkeypatch.undo()
    assert caught.tb is not None
    free(tmp_path)
    assert trained(work, tmp_path).phase is Phase.DONE
    went_on(tmp_path)


# ------------------------------------------------------------------- another thread, processes


def test_a_run_in_another_thread_leaves_signals_to_the_main_one(own_handlers: list[int], tmp_path: Path) -> None:
    """It saves, logs and ends as ever, and a fork in it does not touch handlers either."""
    work, finals = counting(), []

    def forks() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        process = multiprocessing.get_context("fork").Process(target=fail_unless_heard)
        process.start()
        process.join()
        assert process.exitcode == 0

    def fail_unless_heard() -> None:
        signal.raise_signal(signal.SIGTERM)
        os._exit(signal.SIGTERM not in own_handlers)

    thread = threading.Thread(target=lambda: finals.append(trained(work, tmp_path, in_epoch(epoch_3=forks))))
    thread.start()
    thread.join()
    assert [final.phase for final in finals] == [Phase.DONE]
    assert weight(work) == float(EPOCHS)
    assert own_handlers == [signal.SIGTERM]
    went_on(tmp_path)


def network(**loader: Any) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = torch.utils.data.TensorDataset(*(tensor[:64] for tensor in diabetes().tensors))
    valid = [tuple(tensor[64:80] for tensor in diabetes().tensors)]
    train = reproducible(DataLoader(data, 16, shuffle=True, **loader))
    return Supervised(model, optimizer, nn.MSELoss(), train, valid)


@on(Phase.BATCH_END)
def leaves(state: State) -> Transition | None:
    return Transition(flags=Flag.SUSPEND) if state.iteration == 6 else None


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_are_forked_or_spawned_and_checkpoints(method: str, tmp_path: Path) -> None:
    """Left in mid-epoch and resumed by new objects, it is the undisturbed training, bit for bit."""
    settings = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": method}
    work = network(**settings)
    run(start(work, epochs=3, seed=0), [checkpoint(tmp_path), leaves], log=tmp_path / "run.jsonl")
    again = network(**settings)
    final = run(restore(tmp_path, again), [checkpoint(tmp_path)], log=tmp_path / "run.jsonl")
    undisturbed = network(num_workers=1, persistent_workers=True)
    run(start(undisturbed, epochs=3, seed=0))
    assert final.notes == ()
    assert same_weights(again.model, undisturbed.model)


def test_an_ablation_with_workers_and_checkpoints(tmp_path: Path) -> None:
    """Its figures are those without either; no lock, no half-written file and no process is left."""

    def table(callbacks: list[Callback[Any]], **loader: Any) -> dict[str | None, tuple[float, ...]]:
        def make_state(seed: int) -> State:
            return start(network(**loader), epochs=2, seed=seed)

        return {row.without: row.values for row in ablate(make_state, callbacks, seeds=(0, 1), progress=False).rows}

    with_both = table([ema(0.9), checkpoint(tmp_path, keep=1)], num_workers=2)
    bare = table([ema(0.9)])
    assert with_both["ema"] == bare[None]
    assert with_both["checkpoint"] != with_both["ema"]
    assert {name[:5] for name in names(tmp_path)} == {"epoch"}
    assert multiprocessing.active_children() == []
