"""A language model that two processes share out, beside the same script in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_examples import EXAMPLES, numbers, run


def test_two_processes_hold_half_each_and_reach_the_perplexity_of_one(tmp_path: Path) -> None:
    """The script says nothing of how many there are."""
    pattern = r"perplexity (\S+) after (\d+) steps; ([\d,]+) parameters"
    alone = run("sharded_lm.py").replace(",", "")

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(EXAMPLES / "sharded_lm.py")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    perplexity, steps, held = numbers(done.stdout.replace(",", ""), pattern)
    of_one, as_many, of_all = numbers(alone, pattern)

    assert perplexity == pytest.approx(of_one, rel=1e-3)
    assert perplexity < 18
    assert (steps, 2 * held) == (as_many, of_all)
