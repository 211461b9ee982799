"""A training that another process takes over in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fsm_train import Callback, State, Supervised, replay, restore, run, start
from fsm_train.callbacks import checkpoint
from tests.models import leave_after


def killed_and_resumed(
    make: Callable[[], Supervised],
    folder: Path,
    iteration: int,
    callbacks: Sequence[Callback[Any]] = (),
    epochs: int = 2,
) -> tuple[State, Supervised]:
    """Train until this iteration, and go on with objects that are all new and other random numbers; log and replay."""
    log = folder / "run.jsonl"
    consulted = [*callbacks, checkpoint(folder / "saved"), leave_after(iteration)]
    left = run(start(make(), epochs=epochs, seed=0), consulted, log=log)
    assert left.batch > 0, "it is to be left in the middle of an epoch"

    torch.manual_seed(99)
    work = make()
    final = run(restore(folder / "saved", work), consulted, log=log)
    assert final.notes == ()
    assert replay(log, consulted).ok
    return final, work
