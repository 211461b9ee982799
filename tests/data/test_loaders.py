"""Workers of a loader: they outlive a signal to the whole group, and end with the process that they work for."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fsm_train.data import loaders
from fsm_train.data.loaders import start_pass
from tests.warm_process import run_script

SCRIPT = """
import os, signal, sys, time
from torch.utils.data import DataLoader, Dataset
from fsm_train.data.loaders import start_pass

def say(what):
    os.write(1, (str(what) + "\\n").encode())  # in one go: several processes speak

class Numbers(Dataset):
    def __len__(self): return 8
    def __getitem__(self, index):
        time.sleep({seconds})
        return index

if __name__ == "__main__":
    os.setpgrp()
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    loader = DataLoader(
        Numbers(), 1, num_workers=2, persistent_workers={persistent}, worker_init_fn=say
    )
    batches = start_pass(loader)
    assert loader.worker_init_fn is say
    {rest}
    say("end")
"""


def _said(folder: Path, rest: str, *, seconds: float = 0.0, persistent: bool = False) -> list[str]:
    (script := folder / "script.py").write_text(SCRIPT.format(rest=rest, seconds=seconds, persistent=persistent))
    done = run_script(script)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(done.stdout.split())


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_outlive_a_signal_to_the_group(persistent: bool, tmp_path: Path) -> None:
    """All batches are there after it, and the signal is heard where it is to be; they did first what they had to."""
    rest = "next(batches); os.killpg(0, signal.SIGTERM); assert len([*batches]) == 7; assert heard"

    assert _said(tmp_path, rest, persistent=persistent, seconds=0.01) == ["0", "1", "end"]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_that_are_left_end_with_the_process(persistent: bool, tmp_path: Path) -> None:
    """The process leaves as it is used to, also where workers sleep over a sample."""
    since = time.monotonic()
    rest = "next(batches); next(batches)"  # one of each worker: who has not begun yet has nothing to say

    assert _said(tmp_path, rest, persistent=persistent, seconds=0.3) == ["0", "1", "end"]
    assert time.monotonic() - since < 30


def test_a_process_ends_though_a_worker_was_ended_with_a_lock(tmp_path: Path) -> None:
    """A process of `multiprocessing`, such as a rank: Python ends its workers, and torch then asks for that lock."""
    code = """
import multiprocessing, os, signal, sys
from multiprocessing.synchronize import Event
from torch.utils.data import DataLoader
from fsm_train.data.loaders import start_pass

def keep_the_lock(worker):
    def is_set(event):  # as torch asks before each sample
        with event._cond:
            os.write(pipe[1], b"locked")
            signal.pause()
    Event.is_set = is_set

def rank():
    batches = start_pass(DataLoader([1, 2], num_workers=1, worker_init_fn=keep_the_lock))
    os.read(pipe[0], 6)
    sys.exit(7)

pipe = os.pipe()
process = multiprocessing.get_context("fork").Process(target=rank)
process.start()
process.join(120)
print(process.exitcode)
process.kill()
"""
    (tmp_path / "script.py").write_text(code)
    done = run_script(tmp_path / "script.py")
    assert (done.stdout, done.stderr) == ("7\n", "")


STARTS = """
import multiprocessing, os, signal, sys
from multiprocessing import resource_tracker
from torch.utils.data import DataLoader, Dataset
from fsm_train.data.loaders import start_pass

class Numbers(Dataset):
    def __init__(self): self.length = 2
    def __len__(self): return self.length
    def __getitem__(self, index): return index
    def __setstate__(self, state):  # in a worker that is spawned
        self.length = state["length"]
        group_is_told()

def group_is_told():
    if method != "forkserver":
        os.killpg(0, signal.SIGTERM)

def count_blocked():
    sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))

method = sys.argv[-1]
if __name__ == "__main__":
    os.setpgrp()
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    if method == "fork":
        os.register_at_fork(after_in_child=group_is_told)
    if method == "forkserver":
        resource_tracker.ensure_running()  # as something else of the program has
    batches = [*start_pass(DataLoader(Numbers(), 1, num_workers=1, multiprocessing_context=method))]
    print(len(batches), {*heard} == {signal.SIGTERM})
    if method == "forkserver":
        later = multiprocessing.get_context(method).Process(target=count_blocked)
        later.start()
        later.join()
        print(later.exitcode, "blocked")
"""


@pytest.mark.parametrize(
    ("method", "printed"),
    [("fork", "2 True\n"), ("spawn", "2 True\n"), ("forkserver", "2 False\n0 blocked\n")],
    ids=["fork", "spawn", "forkserver"],
)
def test_workers_that_start_are_spared_and_nothing_stays_blocked(method: str, printed: str, tmp_path: Path) -> None:
    """By a signal to the group that comes before they have a handler of their own; later processes get signals."""
    (tmp_path / "script.py").write_text(STARTS)
    done = run_script(tmp_path / "script.py", method)
    assert (done.stdout, done.stderr) == (printed, "")


def test_workers_end_where_the_loader_is_part_of_a_cycle(tmp_path: Path) -> None:
    """They are swept up with it: torch cannot ask them to leave any more, and ends them with a signal."""
    rest = """
import gc, multiprocessing, torch
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
next(batches), next(batches)
loader.cycle = [loader, batches]
del loader, batches
gc.collect()
assert multiprocessing.active_children() == []"""
    rest = "".join(f"\n    {line}" for line in rest.splitlines())

    for persistent in (False, True):
        assert _said(tmp_path, rest, persistent=persistent) == ["0", "1", "end"]


def test_signal_to_the_process_alone_is_heard_by_it(tmp_path: Path) -> None:
    """It is held back only while the workers start."""
    assert _said(tmp_path, "os.kill(os.getpid(), signal.SIGTERM); assert heard == [15]; [*batches]") == [
        "0",
        "1",
        "end",
    ]


def test_without_workers_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for lists, nor for loaders that read in this process, nor where signals cannot be blocked."""

    def touched(*args: Any) -> Any:
        raise AssertionError("a signal was touched")

    monkeypatch.setattr(signal, "pthread_sigmask", touched)
    assert list(start_pass([1, 2])) == [1, 2]
    assert len(list(start_pass(DataLoader([1, 2], num_workers=0)))) == 2
    monkeypatch.delattr(signal, "pthread_sigmask")
    assert len(list(start_pass(DataLoader([1, 2], num_workers=1)))) == 2


@pytest.mark.parametrize("why", ["it leaves", "it is gone"])
def test_spared_until_the_process_leaves(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker leaves at SIGTERM once the process that it works for does, or is gone, and not before."""

    class Leaving:
        value = 0

    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    before, mask = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        begins: list[int] = []
        loaders._SigtermShield(begins.append, Leaving)(3)
        signal.raise_signal(signal.SIGTERM)
        assert (begins, left) == ([3], [])
        if why == "it leaves":
            Leaving.value = 1
        else:
            monkeypatch.setattr(os, "getppid", lambda: 1)
        signal.raise_signal(signal.SIGTERM)
        assert left == [0]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Frozen(Dataset[int]):
    """How much of what a worker was forked with it will never collect."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return gc.get_freeze_count()


@pytest.mark.parametrize("in_use", [False, True])
def test_workers_leave_garbage_of_a_device_alone(in_use: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot free its tensors; in this process all is as before."""
    gc.unfreeze()  # what was frozen when the tests began
    before = gc.get_freeze_count()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    (found,) = start_pass(DataLoader(Frozen(), 1, num_workers=1, multiprocessing_context="fork"))

    assert (int(found) > 1000) == in_use
    assert gc.get_freeze_count() <= before
    gc.freeze()
