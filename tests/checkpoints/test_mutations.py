"""Random mutations of the files of a checkpoint: an answer or a refusal, soon, and a refusal changes nothing."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
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
from fsm_train.cli import main
from fsm_train.core.commands import SaveCheckpoint
from tests.how_long import THOROUGH, of_all

from .mutations import KINDS, mutate
from .rich_training import everything, library, rich, same

PARTS = 20
MUTATIONS = of_all(10_000, few=100)
SECONDS = 10.0  # for one call, whose answer takes some milliseconds
BYTES = 2**29  # of memory, which a file of some kilobytes takes at most
EPOCHS = 260

Captured = pytest.CaptureFixture[str]


def workload() -> Supervised:
    return rich(batches=2, extra=("counter",), frozen=True)


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

    run(start(workload(), epochs=EPOCHS, seed=0), [*library(900), save])
    assert len(list((folder / "last").glob("history-*"))) == len(list((folder / "last").glob("frozen-*"))) == 1
    return folder


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
        begin = time.process_time()
        with warnings.catch_warnings(action="ignore"):
            refusal = refusal_of(_call(number, folder, work, bare))
        assert time.process_time() - begin < SECONDS, where
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
    assert refusals or kind == "state.json" or not THOROUGH  # a state may well be another one, and five of a kind too
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
