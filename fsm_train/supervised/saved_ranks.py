"""The ranks of a training, as saving and restoring need them: how they tell each other, and what each has of its own.

Rule of this file: what a rank has beside its model and its data is two numbers, which are the part `ranks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch.distributed as dist

from ..checkpoints.own_parts import own_parts
from ..checkpoints.writing import Parts
from ..core.errors import WorkloadError
from ..core.state import State
from ..data.own_rank import launched_ranks
from ..encoding import Json
from ..worlds.rows import Topic
from .parallel import Ranks
from .told_beside import ToldBeside


@attrs.frozen(eq=False)
class SavedTogether:
    """The ranks of this workload, which write and restore one checkpoint: `Peers` for one of them."""

    _work: Any
    _ranks: Ranks

    @property
    def rank(self) -> int:
        return self._ranks.rank

    @property
    def ranks(self) -> int:
        return self._ranks.ranks

    @property
    def lost(self) -> bool:
        return self._ranks.lost

    def tell(self, topic: Topic, own: Json) -> Sequence[Any]:
        return self._ranks.meeting(self._work).values(topic, own)

    def beside(self) -> ToldBeside:
        return self._ranks.exchange.beside(self)

    def own_parts(self, parts: Parts) -> Parts:
        return own_parts(parts, with_gradients=bool(parts["ranks"]["unreduced"]))


def part_of_rank(work: Any, state: State) -> Mapping[str, Any]:
    """What a rank has beside its model and its data.

    `unreduced` is whether gradients of its own wait for a step; `counted` is what its batches of the epoch count.
    """
    ranks: Ranks = work.ranks
    unreduced = ranks.unreduced and state.pending > 0 and ranks.reduces(work)
    return {"unreduced": unreduced, "counted": float(ranks.train_pass(work).counted)}


def restore_rank(work: Any, part: Mapping[str, Any]) -> None:
    """Restore what `part_of_rank` gave; nothing was saved of a training on one rank."""
    ranks: Ranks = work.ranks
    ranks.unreduced = part.get("unreduced", False)
    ranks.train_pass(work).counted = part.get("counted", 0.0)


def check_ranks_known(work: Any) -> None:
    """Refuse to restore where a callback would say later that several processes train one model.

    Raises:
        WorkloadError: there are several, and the workload does not say what they are.
    """
    there = max(launched_ranks(), dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1)
    if work.ranks is None and work.parallel is None and there > 1:
        raise WorkloadError(
            f"this is one of {there} processes, and restore has to know what they are: write "
            'Supervised(…, parallel="ddp"), or parallel=False where each trains a model of its own'
        )
