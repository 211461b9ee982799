"""Logs of real trainings: the digits, with most of the library, suspended, crashed and restored."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    Callback,
    CallbackError,
    Phase,
    State,
    Supervised,
    Transition,
    diff,
    on,
    read_log,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    early_stopping,
    ema,
    restore_best,
    schedule,
    skip_nonfinite,
    torch_scheduler,
)
from fsm_train.eventlog import Header
from fsm_train.schedules import cosine, warmup
from tests.models import accuracy, digits, network, sgd, shuffled


def workload() -> Supervised:
    model = network()
    data = digits()
    metrics: dict[str, Any] = {"accuracy": accuracy}
    return Supervised(model, sgd(model), nn.CrossEntropyLoss(), shuffled(data), shuffled(data, 160), metrics=metrics)


def library() -> list[Callback[Any]]:
    return [
        accumulate(2),
        skip_nonfinite(),
        clip_grad_norm(1.0),
        schedule(lr=warmup(5).then(cosine(40))),
        ema(0.9),
        restore_best(),
        early_stopping(patience=2),
    ]


def test_a_real_training_is_replayed(tmp_path: Path) -> None:
    """Without the model, the same decisions and the same last state; and a second training has an equal log."""
    logs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    finals = [run(start(workload(), epochs=4, seed=0), library(), log=log) for log in logs]

    again = replay(logs[0])

    assert again.divergence is None
    assert again.state.history == finals[0].history
    assert again.state.hyper == finals[0].hyper
    assert diff(*logs) is None
    assert logs[0].read_bytes() == logs[1].read_bytes()


def test_what_torch_sets_is_a_fact(tmp_path: Path) -> None:
    """The rate that a scheduler of torch sets stands in the log, and is replayed from there."""
    callbacks = [torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))]
    final = run(start(workload(), epochs=2, seed=0), callbacks, log=tmp_path / "run.jsonl")

    again = replay(tmp_path / "run.jsonl", callbacks)

    assert again.divergence is None
    assert again.state.hyper == final.hyper


def test_a_training_that_is_restored_continues_its_log(tmp_path: Path) -> None:
    """After a crash, lines behind the checkpoint are superseded, and the history that counts is replayed as one."""
    path, folder = tmp_path / "run.jsonl", tmp_path / "checkpoints"
    crash = True

    @on(Phase.BATCH_END)
    def power(state: State) -> Transition | None:
        if crash and state.iteration == 17:
            raise RuntimeError("power cut")
        return None

    callbacks = [*library()[:4], checkpoint(folder, every_steps=3), power]
    with pytest.raises(CallbackError, match="power cut"):
        run(start(workload(), epochs=3, seed=0), callbacks, log=path)
    crash = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        final = run(restore(folder, workload()), callbacks, log=path)

    headers = [record for record in read_log(path) if isinstance(record, Header)]
    again = replay(path, callbacks)

    assert len(headers) == 2
    assert headers[1].continues is not None
    assert not headers[1].gap
    assert any(record.superseded for record in read_log(path, superseded=True))
    assert again.divergence is None
    assert again.state.history == final.history
