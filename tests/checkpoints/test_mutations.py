"""Random mutations of the files of a checkpoint: an answer or a refusal, soon, and a refusal changes nothing."""

from __future__ import annotations

import copy
import os
import random
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    CheckpointError,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    load_weights,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import accumulate, ema, restore_best, schedule
from fsm_train.cli import main
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.schedules import cosine

from .mutations import KINDS, mutate

THOROUGH = os.environ.get("FSM_TRAIN_LONG") == "1"
PARTS = 20
MUTATIONS = 10_000 if THOROUGH else 100
SECONDS = 10.0  # for one call, whose answer takes some milliseconds
BYTES = 2**29  # of memory, which a file of some kilobytes takes at most
EPOCHS = 260

Captured = pytest.CaptureFixture[str]


class _Counter:
    """Something beside the model that is saved with it."""

    def __init__(self) -> None:
        self.counted = 0

    def state_dict(self) -> dict[str, Any]:
        return {"counted": self.counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counted = int(state["counted"])


def workload() -> Supervised:
    """A training that has something in most parts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model.register_parameter("fixed", nn.Parameter(torch.randn(40, 40), requires_grad=False))
    data = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(2)]
    optimizer = torch.optim.AdamW(model.parameters())
    return Supervised(model, optimizer, nn.MSELoss(), data, data[:1], extra={"counter": _Counter()})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a long history; the last two are within an accumulation window and an epoch."""
    folder = tmp_path_factory.mktemp("source")

    @on(Phase.VALID_END, Phase.BATCH_END)
    def save(state: State) -> Transition | None:
        if state.phase is Phase.BATCH_END and state.iteration == 2 * EPOCHS - 1:
            return Transition(commands=(SaveCheckpoint(str(folder), "last", monitor="valid_loss"),))
        if state.phase is Phase.VALID_END and state.epoch in (EPOCHS - 4, EPOCHS - 3):
            return Transition(commands=(SaveCheckpoint(str(folder), f"at-{state.epoch}", monitor="valid_loss"),))
        return None

    callbacks = [ema(0.9), restore_best(), accumulate(3), schedule(lr=cosine(900)), save]
    run(start(workload(), epochs=EPOCHS, seed=0), callbacks)
    assert len(list((folder / "last").glob("history-*"))) == len(list((folder / "last").glob("frozen-*"))) == 1
    return folder


def everything(work: Supervised, bare: nn.Module) -> list[Any]:
    """What a refusal leaves as it is: the workload, a bare model, and the generators of the process."""
    return [
        copy.deepcopy((work.model.state_dict(), work.model.training, bare.state_dict(), work.optimizer.state_dict())),
        [None if p.grad is None else p.grad.clone() for p in work.parameters],
        [(p.requires_grad, p.dtype) for p in (*work.parameters, *bare.parameters())],
        [sorted(group) for group in work.optimizer.param_groups],
        work.window.state(),
        copy.deepcopy(work.train_meters.state()),
        [id(part) for part in (work.carried_over, work.suspended_at, work.epoch_start)],
        work.extra["counter"].counted,
        random.getstate(),
        torch.get_rng_state(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _call(number: int, folder: Path, work: Supervised, bare: nn.Module) -> Callable[[], object]:
    """What is done with a mutated checkpoint: each mutation meets one of the ways to read it, in turn."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: restore(folder / "last", work),
        lambda: restore(folder, work),
        lambda: load_weights(folder / "last", bare, which="last"),
        lambda: load_weights(folder, bare),
        lambda: load_weights(folder, bare, which="last"),
    )
    return ways[number // PARTS % len(ways)]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_checkpoint_is_restored_or_refused(
    part: int, kind: str, source: Path, tmp_path: Path, capsys: Captured
) -> None:
    """A refusal is a documented error that changes nothing; the folder is restored all the same; nothing takes long."""
    refusals = 0
    work, bare = workload(), workload().model
    before, memory = everything(work, bare), most_memory()
    for number in range(part, MUTATIONS, PARTS):
        where = f"{kind}, mutation {number}"
        folder = copied(source, tmp_path / "copy")
        mutate(kind, folder / "last", random.Random(where))
        begin = time.monotonic()
        with warnings.catch_warnings(action="ignore"):
            refusal = refusal_of(_call(number, folder, work, bare))
        assert time.monotonic() - begin < SECONDS, where
        if refusal is None:
            work, bare = workload(), workload().model
            before = everything(work, bare)
        else:
            refusals += 1
            assert isinstance(refusal, (CheckpointError, WorkloadError, RuntimeError)), (where, refusal)
            assert same(everything(work, bare), before), (where, refusal)
        if number // PARTS % 5 == 0:
            options = ["--json"] if number % 2 else []
            assert main(["checkpoints", *options, str(folder)]) in (0, 1), where
            assert capsys.readouterr().err == "", where
        shutil.rmtree(folder)
    # A mutation may well be another state, and five of tensors may all be other numbers.
    assert refusals or kind == "state.json" or not THOROUGH
    assert most_memory() - memory < BYTES


def refusal_of(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def most_memory() -> int:
    """The most bytes that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def copied(source: Path, folder: Path) -> Path:
    """A copy of the folder of which the newest checkpoint shares no file with the other two."""
    shutil.copytree(source, folder, copy_function=os.link)
    for path in (folder / "last").iterdir():
        path.unlink()
        shutil.copy(source / "last" / path.name, path)
    return folder
