"""The generator of NumPy, which is there in some processes and not in others."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, State, Supervised, Transition, on, restore, run, start
from fsm_train.callbacks import checkpoint


def _work() -> Supervised:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Supervised(model, optimizer, nn.MSELoss(), [(torch.ones(1, 1), torch.ones(1, 1))] * 4)


@on(Phase.BATCH_END)
def leave(state: State) -> Transition | None:
    """Suspends in the middle."""
    return Transition(flags=Flag.SUSPEND) if state.iteration == 2 else None


def _save(folder: Path) -> None:
    assert run(start(_work(), epochs=1, seed=0), [checkpoint(folder), leave]).phase is Phase.SUSPENDED


def _go_on(folder: Path) -> State:
    return run(restore(folder, _work()), [checkpoint(folder)])


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Whatever was drawn in between."""
    _save(tmp_path)
    expected = np.random.rand()
    np.random.seed(5)
    _go_on(tmp_path)

    assert np.random.rand() == expected


def test_what_was_not_there_at_the_save_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was saved of its generator, so nothing of it is put back."""
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numpy", None)
        _save(tmp_path)
    np.random.seed(5)
    final = _go_on(tmp_path)

    assert np.random.rand() == np.random.RandomState(5).rand()
    assert final.notes == ()


def test_what_is_not_imported_yet_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where it was, also if whoever draws from it imports it later."""
    _save(tmp_path)
    expected = np.random.rand()
    np.random.seed(5)

    def import_module(name: str) -> object:
        return sys.modules.setdefault(name, np)  # NumPy itself cannot be imported twice in one process

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.delitem(sys.modules, "numpy")
    final = _go_on(tmp_path)

    assert sys.modules["numpy"] is np
    assert np.random.rand() == expected
    assert final.notes == ()


def test_what_cannot_be_imported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here can draw from it, so the training continues without."""
    _save(tmp_path)
    monkeypatch.setitem(sys.modules, "numpy", None)
    final = _go_on(tmp_path)

    assert final.phase is Phase.DONE
    assert final.notes == ("the generator of NumPy: it cannot be imported here",)
