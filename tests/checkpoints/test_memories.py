"""Memories from a checkpoint or a log: made again of what the callback declares, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fsm_train import (
    Callback,
    CheckpointError,
    Phase,
    State,
    Supervised,
    Transition,
    extend,
    on,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint
from fsm_train.testing import CallbackCheckError, check_callback
from tests.models import diabetes, sgd


@attrs.frozen
class Seen:
    epochs: int = 0


@attrs.frozen
class SeenSince:
    epochs: int = 0
    best: float = 0.0


def _work() -> Supervised:
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    return Supervised(model, sgd(model), nn.MSELoss(), torch.utils.data.DataLoader(diabetes(), 64))


def _none_at_first() -> Callback[Any]:
    @on(Phase.EPOCH_END)
    def counts(state: State, seen: Seen | None) -> Transition:
        return Transition(memory=Seen(1 if seen is None else seen.epochs + 1))

    return counts


def _a_number_at_first() -> Callback[Any]:
    @on(Phase.EPOCH_END, memory=0)
    def counts(state: State, seen: int | tuple[Seen, ...]) -> Transition:
        return Transition(memory=(Seen(state.epoch),) if isinstance(seen, int) else (*seen, Seen(state.epoch)))

    return counts


@pytest.mark.parametrize("make", [_none_at_first, _a_number_at_first])
def test_records_that_come_later_come_back(make: Any, tmp_path: Path) -> None:
    """The type of the second parameter says of which classes they may be: in a checkpoint, and in a replay."""
    log = tmp_path / "run.jsonl"
    run(start(_work(), epochs=2, seed=0), [make(), checkpoint(tmp_path / "runs")], log=log)
    final = run(extend(restore(tmp_path / "runs", _work()), epochs=1), [make(), checkpoint(tmp_path / "runs")], log=log)

    assert final.memory["counts"] in (Seen(3), (Seen(1), Seen(2), Seen(3)))
    replayed = replay(log, [make(), checkpoint(tmp_path / "runs")])
    assert replayed.ok
    assert replayed.state.memory["counts"] == final.memory["counts"]


def test_records_that_nobody_declares_are_refused(tmp_path: Path) -> None:
    """With the names of callback and class and what to do; whoever checks the callback is told before it matters."""

    @on(Phase.EPOCH_END)
    def counts(state: State, seen: Any) -> Transition:
        return Transition(memory=Seen(state.epoch))

    run(start(_work(), epochs=1, seed=0), [counts, checkpoint(tmp_path)])
    state = extend(restore(tmp_path, _work()), epochs=1)

    with pytest.raises(CheckpointError, match="'counts' does not fit it: it has a record of a class 'Seen'.*second pa"):
        run(state, [counts, checkpoint(tmp_path)])
    with pytest.raises(CallbackCheckError, match=r"(?s)a class 'Seen', which is not known here.*type of the function"):
        check_callback(counts, examples=20)


def _counts(memory: object) -> Callback[Any]:
    @on(Phase.EPOCH_END, memory=memory)
    def counts(state: State, seen: Any) -> Transition:
        return Transition(memory=attrs.evolve(seen, epochs=seen.epochs + 1))

    return counts


def test_records_with_other_fields_are_refused(tmp_path: Path) -> None:
    """With the names of callback, class and fields; nothing is guessed, and under another name it begins afresh."""
    run(start(_work(), epochs=1, seed=0), [_counts(Seen()), checkpoint(tmp_path)])
    changed = attrs.make_class(
        "Seen", {"epochs": attrs.field(default=0), "best": attrs.field(default=0.0)}, frozen=True
    )
    sentence = r"'counts' does not fit it: its record Seen has the fields \['epochs'\], but now \['best', 'epochs'\]"

    with pytest.raises(CheckpointError, match=f"{sentence}.*With another name="):
        run(extend(restore(tmp_path, _work()), epochs=1), [_counts(changed()), checkpoint(tmp_path)])

    again = attrs.evolve(_counts(SeenSince()), name="counts_since")
    final = run(extend(restore(tmp_path, _work()), epochs=1), [again, checkpoint(tmp_path)])
    assert final.memory["counts_since"] == SeenSince(epochs=1)
