"""SIGTERM at random moments: a checkpoint each time, within the batch, and the training continues from it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsm_train.checkpoints.manifest import list_folder, verify
from tests.checkpoints.awkward_training import Spec
from tests.checkpoints.comparison import differences, train_through
from tests.checkpoints.processes import signalled
from tests.how_long import SHARE, THOROUGH, of_all

EXAMPLE = Path(__file__).parents[2] / "examples" / "preempted.py"


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("group", [False, True])
def test_sigterm_at_random_moments(group: bool, workers: int, tmp_path: Path) -> None:
    """Each leaves a good checkpoint before another batch is done, with status 143 and the handlers back.

    Also when the whole process group gets the signal, the loader's workers too. In the end it is the same
    training.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    expected = train_through(Spec(loader="reproducible", epochs=1))
    draw, trials, validating, trainings = random.Random(seed), 0, 0, 0
    while trials < of_all(25, few=2):
        folder = tmp_path / str(trainings)
        spec = Spec(loader="reproducible", workers=workers, epochs=1, saves=str(folder), slow=0.02)
        trainings += 1
        while (result := signalled(spec, signal.SIGTERM, draw.uniform(0.0, 0.4), group=group)).status == 143:
            trials += 1
            validating += result.report["validating"]
            assert result.batches_after <= 1, seed
            assert result.report["handlers"], seed
            newest, *_ = list_folder(folder).checkpoints
            assert newest.path.name.endswith("-suspended"), seed
            verify(newest)
        # One that comes before the training begins, or after it, ends the process as it ends any other.
        if result.status == -signal.SIGTERM:
            continue
        assert result.status == 0, seed
        assert differences(expected, (result.end, [])) == [], seed
    print(f"{trials} trials, {validating} of them in a validation, {trainings} trainings")
    assert validating or SHARE < 1, seed


@pytest.mark.long
@pytest.mark.skipif(not THOROUGH, reason="five processes that each import torch; killed at random moments above")
def test_the_example_ends_as_if_it_had_never_been_killed() -> None:
    """Killed by its timer a few times, it goes on, and its final weights are those of an undisturbed run."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True, timeout=300
    ).stdout

    assert len(re.findall(r"SIGTERM.*exit status 143", done)) >= 2
    assert "the same to the last bit" in done
