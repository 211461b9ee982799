"""SIGTERM at random moments, to one rank or to all: one checkpoint, all at the same step, and all continue."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from fsm_train import NoCheckpointError, Phase, State, on, restore, run, start
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints.manifest import list_folder, verify
from fsm_train.core.phase import Junction
from tests.checkpoints.comparison import differences, end_of, train_through
from tests.checkpoints.ranks_training import RankSpec
from tests.forked import forked
from tests.how_long import of_all

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


@on(Phase.BATCH_BEGIN, Phase.VALID_BATCH_BEGIN, name="clock")
def clock(state: State) -> None:
    time.sleep(0.01)


def suspended_at_random(spec: RankSpec, signalled: tuple[int, ...], seed: int, trials: int, folder: Path) -> Any:
    """Suspend trainings so often, the last goes to its end: where, how many validating, and what ended otherwise."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # or it has no workers
    signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes between two runs
    expected = train_through(spec)
    draw, training, validating = random.Random(seed + spec.rank), 0, 0
    steps: list[int] = []
    others: list[str] = []
    ended = False
    while len(steps) < trials or not ended:
        work, callbacks = spec.make()
        saves = folder / str(training)
        try:
            state = restore(saves, work)
        except NoCheckpointError:
            state = start(work, epochs=spec.epochs, seed=0)
        timer = threading.Timer(draw.uniform(0.0, 2.0 if spec.workers else 0.3), os.kill, (os.getpid(), signal.SIGTERM))
        if spec.rank in signalled and len(steps) < trials:
            timer.start()
        state = run(state, [*callbacks, clock, checkpoint(saves, every_steps=1)])
        timer.cancel()
        dist.barrier()
        newest, *_ = list_folder(saves).checkpoints
        verify(newest)
        ended = state.phase is Phase.DONE
        if not ended:
            assert newest.path.name.endswith("-suspended")
            steps.append(state.iteration)
            validating += state.resume_at is Junction.VALID_ABANDONED
        else:
            others += differences(expected, (end_of(work, state), []))
            training += 1
    return steps, validating, others


@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(
    ("workers", "thorough"),
    [(0, False), *(pytest.param(workers, True, marks=pytest.mark.long(alone=True)) for workers in (0, 2))],
)
def test_sigterm_to_a_rank_suspends_all_in_one_checkpoint(
    signalled: tuple[int, ...], workers: int, thorough: bool, tmp_path: Path
) -> None:
    """All leave at the same step, and what is restored ends as the undisturbed training, to the last bit."""
    seed, trials = random.SystemRandom().randrange(2**32), of_all(17, few=2) if thorough else 2

    ends = forked(
        2,
        tmp_path / "group",
        lambda rank: suspended_at_random(RankSpec(rank, workers=workers), signalled, seed, trials, tmp_path),
        limit=180 + 60 * trials,
    )

    assert not [end for end in ends if isinstance(end, BaseException)], (seed, ends)
    (steps, validating, others), (same_steps, *_, also) = ends
    print(f"seed {seed}: suspended after {steps} batches, {validating} times in a validation")
    assert steps == same_steps, seed
    assert others == also == [], seed
