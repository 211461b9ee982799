"""The examples, run for real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.warm_process import run_script

EXAMPLES = Path(__file__).parents[1] / "examples"
HEAVY = ("torch._dynamo", "torch.utils.data", "sklearn.datasets")
"""What takes seconds to import, the first as soon as an optimizer is made: once for all examples."""


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(name: str, *arguments: str, seconds: float = 600, by: tuple[str, ...] | None = None) -> str:
    """What the example prints; one thread each, since tests run side by side."""
    if by is None:
        done = run_script(EXAMPLES / name, *arguments, imports=HEAVY, strict=True, seconds=seconds)
    else:
        command, environment = [*by, str(EXAMPLES / name), *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(shown: str, pattern: str) -> list[float]:
    """What the groups of the pattern match, which it does somewhere."""
    found = re.search(pattern, shown)
    assert found is not None, shown
    return [float(group) for group in found.groups()]


def test_digits_reach_97_percent() -> None:
    """The small network reads at least 97% of the digits it never saw, and says why and when it stopped."""
    shown = run("digits.py")

    accuracy, _ = numbers(shown, r"valid_accuracy (\S+) after (\d+) epochs")
    assert accuracy >= 0.97
    assert "stopped because: " in shown


@pytest.mark.long(alone=True)
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_read_digits_as_one(tmp_path: Path) -> None:
    """The same script: the same decisions and nearly the same losses, one log and one folder of checkpoints."""
    reached = []
    for count, by in ((1, None), (2, TORCHRUN)):
        folder = f"of {count}"
        shown = run("distributed_digits.py", str(tmp_path / folder), seconds=300, by=by)
        accuracy, epochs, samples = numbers(shown, r"valid_accuracy (\S+) after (\d+) epochs, \d+ steps, (\d+) samples")
        assert accuracy > 0.93
        assert samples == 1437 * epochs
        assert f"{count} process" in shown
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert {"run.jsonl", f"epoch-{epochs:05.0f}"} <= names
        reached.append((accuracy, epochs))
    assert reached[0] == reached[1]


@pytest.mark.long(alone=True)
def test_characters_are_better_foreseen_than_by_trigrams() -> None:
    """One epoch at a rate that only clipping makes possible has a lower perplexity than a trigram model."""
    shown = run("char_lm.py", "--epochs=1", seconds=300)

    ours, trigram = numbers(shown, r"perplexity on unseen modules: (\S+), of a trigram model (\S+)")
    assert 1 < ours < 0.9 * trigram


def test_accumulated_batches_are_the_big_batch() -> None:
    """Micro-batches of equal and of unequal size lead to the same weights; counting them alike does not."""
    shown = run("big_batch.py", seconds=300)

    (equal,) = numbers(shown, r"8 of 64 +largest difference of a weight (\S+)")
    (unequal,) = numbers(shown, r"8 unequal ones +largest difference of a weight (\S+)")
    (alike,) = numbers(shown, r"8 unequal ones, each counted alike +largest difference of a weight (\S+)")
    assert equal < 1e-5
    assert unequal < 1e-5
    assert alike > 1e-3


@pytest.mark.long(alone=True)
def test_ablation_names_what_earned_its_place() -> None:
    """The table has a row for everything, each tweak left out, and nothing; those worse without are named."""
    shown = run("ablation.py", "--seeds=2", "--epochs=2", seconds=300)

    head, *rows, verdict = shown.splitlines()
    assert head == "valid_loss: mean ± spread over 2 seeds, difference ± its standard error"
    without = ["schedule", "clip_grad_norm", "mixup", "ema"]
    names = ["all", *(f"without {name}" for name in without), "none"]
    assert [row.split("  ")[0] for row in rows] == names
    earned = [name for name, row in zip(without, rows[1:-1], strict=True) if row.endswith("worse without")]
    assert verdict == f"earned its place: {', '.join(earned) or 'none of them'}"


@pytest.mark.long(alone=True)
def test_a_command_of_ones_own_holds_its_constraint() -> None:
    """Without it rows of weights grow beyond the limit; with it none does, and the network reads better."""
    shown = run("custom_command.py", seconds=300)

    free, accuracy = numbers(shown, r"without +longest row (\S+) +valid_accuracy (\S+)")
    kept, better = numbers(shown, r"max_norm +longest row (\S+) +valid_accuracy (\S+)")
    assert free > 2
    assert kept <= 1.0001
    assert better > accuracy


def test_lbfgs_is_the_loop_with_a_closure() -> None:
    """As many evaluations and the same weights, which the script checks itself; and it learns in a few steps."""
    (accuracy, steps, evaluations) = numbers(
        run("lbfgs.py", seconds=300), r"valid_accuracy (\S+) after (\d+) steps, (\d+) evaluations"
    )

    assert accuracy > 0.95
    assert evaluations > 2 * steps


def test_sam_is_the_loop_with_a_closure() -> None:
    """The weights are the same, which the script checks itself; and it learns."""
    (loss,) = numbers(run("sam.py", seconds=300), r"valid_loss (\S+) after 440 steps")

    assert loss < 0.5


def test_pruning_ends_with_the_weights_of_the_plain_loop() -> None:
    """Which the script checks itself, after a resume in between; three times half of the weights have gone."""
    left, loss = numbers(run("pruning.py", seconds=300), r"equal to .*, (\S+)% of the weights left, train_loss (\S+)")

    assert left == 12.5
    assert loss < 0.3


@pytest.mark.long(alone=True)
def test_what_if_tells_the_truth() -> None:
    """What the log of one training says of other patiences is what training again gives."""
    shown = run("what_if.py")

    assert "trained again with patience 2: it stopped after" in shown
    assert "trained again with patience 5: it stopped after" in shown


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    """Bad trials are pruned; a second call adds to the study that is in the file."""
    shown = run("tune.py", str(tmp_path / "study.db"))
    trials, pruned, best = numbers(shown, r"(\d+) trials, (\d+) of them pruned. The best reached (\S+) with")
    assert (trials, best > 0.95) == (12, True)
    assert 1 <= pruned < 12

    (more,) = numbers(run("tune.py", str(tmp_path / "study.db")), r"(\d+) trials")
    assert more == 24
