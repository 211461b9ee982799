"""One log of a training that was killed and gone on with: it is replayed across the seams, and tells the rest apart."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fsm_train import (
    Callback,
    NoCheckpointError,
    Phase,
    State,
    Supervised,
    read_log,
    replay,
    restore,
    run,
    start,
)
from fsm_train import callbacks as c
from fsm_train.eventlog import Header, Line
from tests.checkpoints.processes import FRESH, as_a_script
from tests.models import diabetes


class Deadly(Dataset[Any]):
    """Kills its process when so many samples were read."""

    def __init__(self, dies_after: int | None) -> None:
        self.data = diabetes()
        self.left = dies_after

    def __len__(self) -> int:
        return 320  # ten batches

    def __getitem__(self, index: int) -> Any:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.data[index]


def _callbacks(folder: Path) -> list[Callback[Any]]:
    return [
        c.accumulate(2),
        c.ema(0.9),
        c.clip_grad_norm(1.0),
        c.early_stopping("train_loss", patience=9),
        c.checkpoint(folder, every_epochs=None, every_steps=3),
    ]


def _train(folder: Path, dies_after: int | None = None) -> State:
    """As a script does that may be killed at any time."""
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    work = Supervised(model, optimizer, nn.MSELoss(), DataLoader(Deadly(dies_after), 32, shuffle=True))
    try:
        state = restore(folder / "runs", work)
    except NoCheckpointError:
        state = start(work, epochs=3, seed=0)
    return run(state, _callbacks(folder / "runs"), log=folder / "run.jsonl")


def _in_a_child(folder: Path, dies_after: int) -> None:
    as_a_script()
    _train(folder, dies_after)


def _course(log: Path) -> Iterator[Any]:
    """What counts of what was to be seen, but for the beginnings of calls of run and what a checkpoint is called."""
    for record in read_log(log):
        if isinstance(record, Line) and record.phase is not Phase.SETUP:
            answers = {name: answer for name, answer in record.answers.items() if name != "checkpoint"}
            yield attrs.asdict(
                attrs.evolve(record, number=0, seq=0, course=(), answers=answers, digest=""), recurse=False
            )


def test_one_log_of_a_training_that_was_killed_twice(tmp_path: Path) -> None:
    """What counts of it is what an undisturbed training has in its log; library and shell replay it to its end."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for folder in (killed, undisturbed):
        folder.mkdir()
    # The first dies when an epoch's end is in the log, and before the next checkpoint: that is superseded.
    for dies_after in (draw.randrange(330, 370), draw.randrange(400)):
        process = FRESH.Process(target=_in_a_child, args=(killed, dies_after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, seed
    final = _train(killed)
    _train(undisturbed)
    log = killed / "run.jsonl"

    assert list(_course(log)) == list(_course(undisturbed / "run.jsonl")), seed
    replayed = replay(log)
    assert replayed.ok, (seed, replayed.divergence)
    assert replayed.state.history == final.history
    assert replayed.state.memory == final.memory
    shell = [sys.executable, "-m", "fsm_train", "replay", str(log)]
    assert subprocess.run(shell, capture_output=True).returncode == 0, seed

    counting, everything = list(read_log(log)), list(read_log(log, superseded=True))
    assert [record for record in everything if not record.superseded] == counting
    assert sum(isinstance(record, Header) for record in everything) == 3
    superseded = [record for record in everything if isinstance(record, Line) and record.superseded]
    assert (Phase.EPOCH_END, 10) in [(record.phase, record.iteration) for record in superseded], seed


def test_another_decision_after_the_seam_is_found(tmp_path: Path) -> None:
    """Another idea of what is better is found at the first epoch's end that is told by it: here one after the seam."""
    process = FRESH.Process(target=_in_a_child, args=(tmp_path, 450))
    process.start()
    process.join()
    _train(tmp_path)
    others = [*_callbacks(tmp_path / "runs"), c.early_stopping("train_loss", mode="max", patience=9)]
    others = [callback for callback in others if callback.params.get("mode") != "min" or callback.name == "checkpoint"]

    found = replay(tmp_path / "run.jsonl", others).divergence

    assert found is not None
    assert (found.callback, found.phase, found.epoch) == ("early_stopping", "epoch_end", 2)
