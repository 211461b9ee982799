"""A language model that two processes share out, beside the same script in one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_examples import EXAMPLES, numbers, run


def on_two(folder: Path) -> str:
    """What the script prints under torchrun, with checkpoints in this folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(EXAMPLES / "sharded_lm.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(",", "")


def test_two_processes_hold_half_each_and_reach_the_perplexity_of_one(tmp_path: Path) -> None:
    """The script says nothing of how many there are. From a checkpoint in mid-epoch it reaches the same again."""
    pattern = r"perplexity (\S+) after (\d+) steps; ([\d,]+) parameters"
    alone = run("sharded_lm.py").replace(",", "")

    printed = on_two(tmp_path / "saved")
    perplexity, steps, held = numbers(printed, pattern)
    of_one, as_many, of_all = numbers(alone, pattern)

    assert perplexity == pytest.approx(of_one, rel=1e-3)
    assert perplexity < 18
    assert (steps, 2 * held) == (as_many, of_all)

    shutil.rmtree(tmp_path / "saved" / "epoch-00001")
    (last,) = (tmp_path / "saved").glob("step-*")
    assert int(last.name.removeprefix("step-")) < steps
    assert on_two(tmp_path / "saved") == printed
