"""What an epoch and a checkpoint cost does not depend on how many epochs there were before."""

from __future__ import annotations

import itertools
from io import StringIO
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from rich.console import Console
from torch import nn

from fsm_train import Callback, Phase, State, Supervised, extend, on, replay, restore, run, start
from fsm_train.callbacks import (
    checkpoint,
    clip_grad_norm,
    early_stopping,
    ema,
    record,
    reduce_on_plateau,
    restore_best,
    schedule,
    stop_at,
    validate_every,
)
from fsm_train.callbacks.monitoring import monitored
from fsm_train.core.history import History
from fsm_train.schedules import cosine
from fsm_train.sinks import progress

EPOCHS = 12


class Counting(list[Any]):
    """Counts how often one of its items is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


def long(epochs: int) -> tuple[State, Counting]:
    """A finished training of so many epochs, and the list that its history is in."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    data = [(torch.zeros(4, 3), torch.ones(4, 1))]
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), data, data)
    state = run(start(work, epochs=1, seed=0))
    items, history = Counting([{"train_loss": 1.0, "valid_loss": 1.0}] * epochs), History[Any]()
    object.__setattr__(history, "_items", items)
    object.__setattr__(history, "_length", epochs)
    return attrs.evolve(state, history=history), items


def looks_per_epoch(epochs: int, callbacks: list[Callback[Any]], **where: Any) -> list[int]:
    """How many items of the history are looked at in each epoch of a training that is continued."""
    state, items = long(epochs)
    seen: list[int] = []

    @on(Phase.EPOCH_BEGIN)
    def count(now: State) -> None:
        seen.append(items.looks)

    final = run(extend(state, epochs=EPOCHS), [*callbacks, count], **where)

    assert final.history._items is items  # it has grown where it is
    assert len(final.history) == epochs + EPOCHS
    return [after - before for before, after in itertools.pairwise(seen)]


def library() -> list[Callback[Any]]:
    """What may look at the metrics of an epoch."""
    return [
        early_stopping(patience=99),
        reduce_on_plateau(patience=99),
        restore_best(),
        stop_at("valid_loss", -1.0),
        schedule(lr=cosine(EPOCHS + 1), by="epoch", name="per_epoch"),
        clip_grad_norm(1.0),
        ema(0.9),
        validate_every(steps=1),
        record("loss"),
    ]


def test_no_epoch_looks_at_the_epochs_before_it(tmp_path: Path) -> None:
    """With what the library has that follows metrics, with a log and with progress."""
    callbacks = library()
    where = {"log": tmp_path / "run.jsonl", "sinks": [progress(console=Console(file=StringIO()))]}

    assert max(looks_per_epoch(3_000, callbacks, **where)) < 20
    assert replay(tmp_path / "run.jsonl", [*callbacks, on(Phase.EPOCH_BEGIN, name="count")(lambda state: None)]).ok


def test_a_checkpoint_looks_at_the_last_epochs_alone(tmp_path: Path) -> None:
    """Those that are in no file yet; and the whole history is in each."""
    first, second, *others = looks_per_epoch(3_000, [checkpoint(tmp_path)])

    assert first > 2_500 < second  # they share nothing
    assert max(others) < 2 * 256 + 20
    state, _ = long(3_000)
    assert len(restore(tmp_path, state.workload).history) == 3_000 + EPOCHS


@pytest.mark.parametrize("measured", [0, 2_999])
def test_a_metric_that_is_not_measured_each_epoch_is_found_near_an_end(measured: int) -> None:
    """Whether it was measured before is asked at each check that has not measured it."""
    state, items = long(3_000)
    list.__setitem__(items, measured, {"valid_accuracy": 1.0})
    check = attrs.evolve(state, phase=Phase.VALID_END, metrics={"valid_loss": 1.0})

    assert monitored(check, "valid_accuracy") is None
    assert items.looks == 2
