"""One folder of checkpoints for all ranks: each has its own parts in it, and all continue from the same one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fsm_train import Flag, Phase, State, Transition, load_weights, on, restore, run, start
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints import other_ranks
from tests.checkpoints.comparison import differences, differences_anywhere, resume, suspended_everywhere, train_through
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
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.long(alone=True))])
def test_resumed_at_any_boundary_it_ends_the_same(training: str, thorough: bool, tmp_path: Path) -> None:
    """To the last bit on each rank: in open windows of gradients not yet reduced, in validations, between epochs."""

    def work(rank: int) -> list[str]:
        spec = RankSpec(rank, **TRAININGS[training])
        return differences_anywhere(spec, tmp_path, step_through(9) if thorough else 9)

    assert forked(2, tmp_path / "group", work) == [[], []]


def test_buffers_of_a_checkpoint_are_those_of_rank_0_for_others_and_its_own_for_each_rank(tmp_path: Path) -> None:
    """In the middle of a window the ranks have different ones; nothing is exchanged for a save."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 2 else None

    def statistics(model: nn.Module) -> torch.Tensor:
        mean: torch.Tensor = model.get_buffer("1.running_mean")
        return mean.clone()

    def work(rank: int) -> Any:
        saved, callbacks = RankSpec(rank).make()
        run(start(saved, epochs=2, seed=0), [*callbacks, leave, checkpoint(tmp_path)])
        for_others, resumed = RankSpec(rank).make()[0].model, RankSpec(rank).make()[0]
        load_weights(tmp_path, for_others, which="last")
        restore(tmp_path, resumed)
        return statistics(saved.model), statistics(resumed.model), statistics(for_others)

    (one, own, as_one), (other, as_other, as_well) = forked(2, tmp_path / "group", work)
    assert not torch.equal(one, other)
    assert torch.equal(own, one)
    assert torch.equal(as_other, other)
    assert torch.equal(as_one, one)
    assert torch.equal(as_well, one)


@pytest.mark.long(alone=True)
def test_what_a_rank_forgets_of_its_own_is_noticed(tmp_path: Path) -> None:
    """Each part of its file is needed: with that of rank 0 in its place, some boundary leads to another end."""

    def work(rank: int) -> dict[str, bool]:
        spec = RankSpec(rank)
        expected = train_through(spec)
        suspended_everywhere(spec, tmp_path)
        paths = sorted(path for path in tmp_path.iterdir() if path.name.isdigit())[::2]
        read, noticed = other_ranks.read_rank_file, {}
        for name in ("nothing", "generators", "beginning", "meters", "extra", "gradients", "ranks", "tensors"):

            def forgetful(*given: Any, name: str = name) -> Any:
                own = read(*given)
                parts = {kept: part for kept, part in own["parts"].items() if kept != name}
                return {"parts": parts, "tensors": [] if name == "tensors" else own["tensors"]}

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(other_ranks, "read_rank_file", forgetful)
                found = [differences(expected, resume(spec, path)) for path in paths]  # all, as the other rank does
            noticed[name] = any(found)
        return noticed

    _, noticed = forked(2, tmp_path / "group", work, limit=200)
    assert noticed == {name: name != "nothing" for name in noticed}
