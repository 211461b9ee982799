"""A training that another process takes over in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, on, replay, restore, run, start
from fsm_train.callbacks import checkpoint


def killed_and_resumed(
    make: Callable[[], Supervised],
    folder: Path,
    iteration: int,
    callbacks: Sequence[Callback[Any]] = (),
    epochs: int = 2,
) -> tuple[State, Supervised]:
    """Train until this iteration, and go on with objects that are all new and other random numbers; log and replay."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == iteration else None

    log = folder / "run.jsonl"
    consulted = [*callbacks, checkpoint(folder / "saved"), leave]
    left = run(start(make(), epochs=epochs, seed=0), consulted, log=log)
    assert left.batch > 0, "it is to be left in the middle of an epoch"

    torch.manual_seed(99)
    work = make()
    final = run(restore(folder / "saved", work), consulted, log=log)
    assert final.notes == ()
    assert replay(log, consulted).ok
    return final, work
