"""Which rank has which sinks, and which log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsm_train import EventLog, Phase, Sink
from fsm_train.watch import of_rank


class Eye(Sink):
    at = (Phase.EPOCH_END,)

    def see(self, state: Any, answers: Any) -> None:
        raise AssertionError("nothing is trained here")


def test_sinks_and_the_log_are_those_of_rank_0(tmp_path: Path) -> None:
    """Also an EventLog with settings."""
    eye, log = Eye(), EventLog(tmp_path / "run.jsonl")
    assert of_rank(0, [eye], log) == (eye, log)
    assert of_rank(0, [eye], None) == (eye,)
    assert of_rank(1, [eye], log) == of_rank(1, [eye], tmp_path / "run.jsonl") == ()


def test_a_path_with_the_rank_is_a_log_for_each(tmp_path: Path) -> None:
    """To compare them; the sinks stay with rank 0."""
    eye = Eye()
    for rank in (0, 1):
        *others, log = of_rank(rank, [eye], tmp_path / "run-{rank}.jsonl")
        assert others == ([eye] if rank == 0 else [])
        assert isinstance(log, EventLog)
        assert Path(log.path).name == f"run-{rank}.jsonl"
    with pytest.raises(ValueError, match="a log of each rank has no settings: write log='run-{rank}.jsonl'"):
        of_rank(1, [], EventLog("run-{rank}.jsonl"))
