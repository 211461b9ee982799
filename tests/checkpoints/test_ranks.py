"""One folder of checkpoints for all ranks: each has its own parts in it, and all continue from the same one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.checkpoints.comparison import differences, resume, suspended_everywhere, train_through
from tests.checkpoints.ranks_training import RankSpec
from tests.forked import forked
from tests.how_long import step_through

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

_OF_TORCH = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OF_TORCH else "broadcast_buffers"
TRAININGS: dict[str, dict[str, Any]] = {
    "windows": {},
    "steps": {"accumulates": 1, "length": 64},
    "own buffers": {"parallel": {_SYNC_BUFFERS: False}},
}


@pytest.mark.parametrize("training", TRAININGS)
def test_resumed_at_any_boundary_it_ends_the_same(training: str, tmp_path: Path) -> None:
    """To the last bit on each rank: in open windows of gradients not yet reduced, in validations, between epochs."""

    def work(rank: int) -> list[str]:
        spec = RankSpec(rank, **TRAININGS[training])
        expected = train_through(spec)
        suspended = suspended_everywhere(spec, tmp_path)
        found = [f"in one process {text}" for text in differences(expected, (suspended, []))]
        for path in sorted(path for path in tmp_path.iterdir() if path.name.isdigit())[:: step_through(9)]:
            found += [f"{path.name} {text}" for text in differences(expected, resume(spec, path))]
        return found

    assert forked(2, tmp_path / "group", work) == [[], []]
