"""How processes that train together end: their status, what they leave word of, and how they are started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist

from fsm_train import Phase, State, on, replay, run, start
from fsm_train.callbacks import checkpoint
from fsm_train.core.runs import interrupted, interrupting_signal
from fsm_train.supervised import leaving
from fsm_train.supervised.parallel import _end_group
from fsm_train.worlds.scripted import Scripted
from tests.forked import forked
from tests.supervised.test_parallel import make

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

TRAINING = """
import os, sys, time
import torch
from torch import nn
from fsm_train import Phase, Supervised, on, run, start

@on(Phase.BATCH_END)
def slowly(state):
    time.sleep(0.01)
    if state.iteration == 3:
        open(f"{folder}/began-{os.environ['RANK']}", "w").write(str(os.getpid()))

folder, how = sys.argv[1:3]
model = nn.Linear(4, 1)
data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(20)]
work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.01), nn.MSELoss(), data, parallel="ddp")
final = run(start(work, epochs=100_000), [slowly])
open(f"{folder}/ended-{os.environ['RANK']}", "w").write(f"{final.phase.value} {final.step}")
if how == "done after":
    run(start(work, epochs=1))
if how == "raises":
    raise OSError("disk full")
"""


def torchrun(folder: Path, script: str, *arguments: str, settings: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Two processes on this machine, in a group of their own."""
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *settings]
    return subprocess.Popen(
        [*command, str(folder / "script.py"), str(folder), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes(folder: Path, seconds: float = 180.0) -> list[int]:
    """The ids of both, once both train."""
    until = time.monotonic() + seconds
    files = [folder / f"began-{rank}" for rank in range(2)]
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < until, "they do not begin"
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


@pytest.mark.long(alone=True)
@pytest.mark.parametrize(
    ("to", "name", "how", "status"),
    [
        ("rank 0", "SIGTERM", "", 143),
        ("rank 1", "SIGTERM", "", 143),
        ("rank 0", "SIGTERM", "done after", 0),
        ("rank 1", "SIGTERM", "raises", 1),
        ("torchrun", "SIGTERM", "", None),
        ("group", "SIGTERM", "", None),
    ],
)
def test_torchrun_hears_of_a_training_that_was_suspended(
    tmp_path: Path, to: str, name: str, how: str, status: int | None
) -> None:
    """All leave at the same step, and with the status of an interrupted program: 0 would be a training that is done."""
    launcher = torchrun(tmp_path, TRAINING, how)
    try:
        ids = processes(tmp_path)
        number = signal.Signals[name]
        if to == "group":
            os.killpg(launcher.pid, number)
        else:
            os.kill(launcher.pid if to == "torchrun" else ids[int(to[-1])], number)
        said, _ = launcher.communicate(timeout=180)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    ends = [(tmp_path / f"ended-{rank}").read_text() for rank in range(2)]
    assert ends[0] == ends[1]
    assert ends[0].startswith("suspended ")
    assert (launcher.returncode == 0) == (status == 0), said
    if status:
        assert f"exitcode  : {status} " in said


KILLED_ONCE = """
import os, signal, sys
import torch
from torch import nn
from fsm_train import Phase, Supervised, on, run, start

folder, rank, attempt = sys.argv[1], os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]

@on(Phase.BATCH_END)
def dies(state):
    if (rank, attempt, state.iteration) == ("1", "0", 7):
        os.kill(os.getpid(), signal.SIGKILL)

model = nn.Linear(4, 1)
data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(5)]
work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.01), nn.MSELoss(), data, parallel="ddp")
final = run(start(work, epochs=3), [dies])
open(f"{folder}/ended-{rank}", "w").write(f"{attempt} {final.step}")
"""


@pytest.mark.long(alone=True)
def test_processes_that_torchrun_starts_again_meet(tmp_path: Path) -> None:
    """And do not look for the addresses of those that are gone, which its store still has."""
    launcher = torchrun(tmp_path, KILLED_ONCE, settings=("--max-restarts=1",))
    try:
        said, _ = launcher.communicate(timeout=180)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode == 0, said
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in range(2)] == ["1 15", "1 15"]


GOES_ON = """
import os, signal, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from fsm_train import NoCheckpointError, Phase, Supervised, on, restore, run, sharded, start
from fsm_train.callbacks import checkpoint

folder, ends, rank, attempt = *sys.argv[1:3], os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]

@on(Phase.BATCH_END)
def dies(state):
    if (ends, rank, attempt, state.iteration) == ("killed", "1", "0", 7):
        os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
data = TensorDataset(torch.randn(20, 4), torch.randn(20, 1))
work = Supervised(
    model, torch.optim.Adam(model.parameters(), lr=0.01), nn.MSELoss(),
    sharded(DataLoader(data, batch_size=4, shuffle=True)), parallel="ddp",
)
try:
    state = restore(f"{folder}/{ends}", work)
except NoCheckpointError:
    state = start(work, epochs=3, seed=0)
begins = f"{attempt} {state.epoch} {state.iteration}"
final = run(state, [dies, checkpoint(f"{folder}/{ends}", every_steps=3)], log=f"{folder}/{ends}.jsonl")
torch.save({"begins": begins, "step": final.step, "weights": model.state_dict()}, f"{folder}/{ends}-{rank}.pt")
"""


@pytest.mark.long(alone=True)
def test_processes_that_torchrun_starts_again_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    """One is killed in the second epoch. Both go on in the middle of it, to the weights of an undisturbed training."""
    launchers = {
        ends: torchrun(tmp_path, GOES_ON, ends, settings=("--max-restarts=1",)) for ends in ("killed", "whole")
    }
    try:
        for launcher in launchers.values():
            said, _ = launcher.communicate(timeout=120)
            assert launcher.returncode == 0, said
    finally:
        for launcher in launchers.values():
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    ends = {name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)] for name in launchers}
    assert [end["begins"] for end in ends["whole"]] == ["0 0 0", "0 0 0"]
    assert [end["begins"] for end in ends["killed"]] == ["1 1 6", "1 1 6"]
    for end in (*ends["killed"], *ends["whole"]):
        assert end["step"] == 15
        for name, expected in ends["whole"][0]["weights"].items():
            assert torch.equal(end["weights"][name], expected)
    dies = on(Phase.BATCH_END, name="dies")(lambda state: None)
    assert replay(tmp_path / "killed.jsonl", [dies, checkpoint(f"{tmp_path}/killed", every_steps=3)]).ok


def threads_of_gloo() -> list[str]:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
def test_no_thread_of_a_group_is_left_when_python_ends(tmp_path: Path) -> None:
    """One that is there while Python ends aborts the process now and then, of a training that is done."""

    def work(rank: int) -> Any:
        trained = make(rank, parallel="ddp")
        run(start(trained, epochs=1))
        before = len(threads_of_gloo())
        _end_group()  # which is called at exit
        return before, threads_of_gloo(), trained.ranks is None

    for before, after, gone in forked(2, tmp_path, work):
        assert before > 1
        assert after == []
        assert not gone


def suspended(name: str = "SIGTERM") -> State:
    return attrs.evolve(interrupted(start(Scripted(), epochs=1), name), resume_at=Phase.BATCH_END)


def test_a_signal_is_named_by_the_state_that_it_suspended() -> None:
    """And not by one that failed, ended, or suspended itself."""
    assert interrupting_signal(suspended()) == "SIGTERM"
    assert interrupting_signal(attrs.evolve(suspended(), error="OSError: disk full")) is None
    assert interrupting_signal(attrs.evolve(suspended(), reason="suspend_after: 60 seconds are over")) is None
    assert interrupting_signal(run(start(Scripted(), epochs=1))) is None


@pytest.mark.parametrize(
    ("state", "by_torchrun", "status"),
    [
        (suspended(), True, 143),
        (suspended("SIGINT"), True, 130),
        (suspended("a signal"), True, None),
        (suspended(), False, None),
        (attrs.evolve(suspended(), resume_at=None), True, None),
    ],
)
def test_status_is_that_of_a_signal(
    monkeypatch: pytest.MonkeyPatch, state: State, by_torchrun: bool, status: int | None
) -> None:
    """Where torchrun reads it, and nowhere else; what was written is there."""
    left: list[Any] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr("multiprocessing.util._exit_function", lambda: left.append("workers"))
    monkeypatch.setattr("logging.shutdown", lambda: left.append("logs"))
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if by_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    leaving.note_end(state)
    leaving._leave()
    leaving.note_status(0)
    leaving._leave()
    assert left == ([] if status is None else ["workers", "logs", status])


def test_others_hear_what_a_script_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Python prints it; the status is that of an error then."""
    told: list[str] = []
    monkeypatch.setattr(leaving, "_hooked", False)
    monkeypatch.setattr(leaving, "_tells", {})
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: told.append("printed"))
    leaving.tell_if_raised("ranks", lambda said: told.append("of a group before"))
    leaving.tell_if_raised("ranks", told.append)
    leaving.note_status(143)
    error = OSError("disk full")
    sys.excepthook(type(error), error, None)
    assert told == ["OSError: disk full", "printed"]
    assert leaving._status == 0
