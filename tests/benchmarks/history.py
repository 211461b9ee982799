# python -m tests.benchmarks.history [--check]: what an epoch, a header and a checkpoint cost after many epochs.
from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from fsm_train import EventLog, Phase, Scripted, State, Supervised, extend, on, restore, run, start
from fsm_train.callbacks import checkpoint, early_stopping
from tests.benchmarks.interleaved import arguments, report

METRICS = ("train_loss", "valid_loss", "valid_pde_residual", "valid_boundary_loss", "valid_rel_l2_error")


def history(epochs: int) -> tuple[dict[str, float], ...]:
    chance = random.Random(0)
    return tuple({name: chance.random() for name in METRICS} for _ in range(epochs))


def after(epochs: int, work: Any) -> State:
    """A training with so many epochs behind it."""
    return attrs.evolve(run(start(work, epochs=1, seed=0)), history=history(epochs))


def supervised() -> Supervised:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Supervised(model, optimizer, nn.MSELoss(), [(torch.zeros(4, 3), torch.ones(4, 1))])


def milliseconds(state: State, more: int, *callbacks: Any, **where: Any) -> float:
    """The median of an epoch, from the third on."""
    ticks: list[float] = []

    @on(Phase.EPOCH_BEGIN)
    def tick(now: State) -> None:
        ticks.append(time.perf_counter())

    run(extend(state, epochs=more), [*callbacks, tick], **where)
    return statistics.median(end - begin for begin, end in itertools.pairwise(ticks[2:])) * 1e3


def took(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1e3


def measured(epochs: int, folder: Path, more: int) -> dict[str, float]:
    scripted = Scripted(loss=0.5, valid_loss=1.0, batches=1)
    plain, real = after(epochs, scripted), after(epochs, supervised())
    patient = early_stopping(patience=10**9)
    log, checkpoints = folder / f"{epochs}.jsonl", folder / f"{epochs}"
    in_epoch = milliseconds(plain, more, patient)
    with_log = milliseconds(plain, more, patient, log=log)
    begun = log.stat().st_size
    one = run(extend(plain, epochs=1), log=EventLog(folder / f"{epochs}-again.jsonl"))
    before = (folder / f"{epochs}-again.jsonl").stat().st_size
    run(extend(one, epochs=1), log=folder / f"{epochs}-again.jsonl")
    save = milliseconds(real, more, checkpoint(checkpoints))
    return {
        "epoch, us": in_epoch * 1e3,
        "epoch with a log, us": with_log * 1e3,
        "log begun elsewhere, kB": begun / 1e3,
        "one more call of run in it, kB": ((folder / f"{epochs}-again.jsonl").stat().st_size - before) / 1e3,
        "epoch with a checkpoint, ms": save,
        "restore, ms": took(lambda: restore(checkpoints, supervised())),
    }


def main() -> None:
    args = arguments(__doc__)
    few, many, more = (300, 3_000, 12) if args.quick else (1_000, 100_000, 60)
    with tempfile.TemporaryDirectory() as folder:
        short, long = (measured(epochs, Path(folder), more) for epochs in (few, many))
    rows = {what: f"| {what} | {short[what]:.1f} | {long[what]:.1f} |" for what in short}
    constant = [what for what in short if what.startswith(("epoch", "one more"))]
    goals = {what: (long[what] / short[what], 1.5) for what in constant}
    head = f"| after so many epochs | {few:,} | {many:,} |"
    report("What many epochs before cost, with five metrics", head, rows, goals, args)


if __name__ == "__main__":
    main()
