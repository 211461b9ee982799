"""Long values that processes tell each other, such as what each has written of a model that they share out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from fsm_train.supervised.ranks import GlooExchange
from fsm_train.worlds.disagreement import PeerError
from fsm_train.worlds.meeting import Meeting
from fsm_train.worlds.rows import Topic
from tests.forked import forked

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def test_long_values_come_from_all_ranks_and_one_that_is_gone_is_missed(tmp_path: Path) -> None:
    """In two exchanges, also where one rank has little to tell; the other ends at once, with its number."""

    class Gone(GlooExchange):
        def gather(self, value: Any, place: str = "") -> list[Any]:
            if told and dist.get_rank() == 1:
                os._exit(1)
            return super().gather(value, place)

    told: list[Any] = []

    def work(rank: int) -> Any:
        meeting = Meeting(Gone(), lambda: None, lambda signal: None)
        told.append(meeting.values(Topic.WRITE, {"pieces": [["a", rank]] * (1 + 20_000 * rank)}))
        assert meeting.exchanges == 2
        with pytest.raises(PeerError) as raised:
            meeting.values(Topic.WRITE, ["x" * 10_000])
        return told[0], str(raised.value), raised.value.__notes__

    one, other = forked(2, tmp_path, work)

    assert isinstance(other, EOFError)
    values, sentence, notes = one
    assert values == [{"pieces": [["a", 0]]}, {"pieces": [["a", 1]] * 20_001}]
    assert sentence.startswith("rank 1 failed, and this rank ended with it: its process is gone, without a word")
    assert notes == ["This rank waited at a checkpoint that is being written."]
