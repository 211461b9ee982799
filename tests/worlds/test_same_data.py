"""Ranks that read the same data whole."""

from __future__ import annotations

import pytest

from fsm_train import Scripted, WorkloadError, run, start
from fsm_train.testing import train_ranks
from fsm_train.testing.ranks import Join
from fsm_train.worlds.meeting import Meeting
from fsm_train.worlds.same_data import SameData


class Read(Scripted):
    """Says what it reads."""

    whole_data = (0.0, 0.0)


def trained(*whole: tuple[float, float]) -> list[str]:
    """What each rank raised, or "" if it trained twice."""

    def train(rank: int, join: Join) -> object:
        work = Read(batches=2)
        work.whole_data = whole[rank]
        joined = join(work)
        run(start(joined, epochs=1))
        return run(start(joined, epochs=1))

    ends = train_ranks(len(whole), train)  # type: ignore[arg-type]
    return [str(end) if isinstance(end, WorkloadError) else "" for end in ends.ends]


def test_training_data_of_all_ranks_are_refused() -> None:
    """Not those of some, nor those of which it is not known."""
    refused = trained((7.0, 0.0), (7.0, 0.0))

    assert refused[0] == refused[1]
    assert refused[0].startswith("each of the 2 ranks reads all of the training data, and the same")
    assert trained((7.0, 1.0), (7.0, 2.0), (8.0, 3.0)) == ["", "", ""]
    assert trained((0.0, 0.0), (0.0, 0.0)) == ["", ""]
    assert trained((7.0, 8.0)) == [""]


def test_validation_data_of_all_ranks_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """By each of these threads; of processes only the first one's warnings are heard."""
    assert trained((1.0, 7.0), (2.0, 7.0)) == ["", ""]
    said = [record.getMessage() for record in caplog.records if "validation data" in record.getMessage()]

    assert len(said) == 2
    assert said[0].startswith("each of the 2 ranks evaluates all of the validation data")


def test_said_is_said_once() -> None:
    """And training data are judged again in each run."""
    data, meeting = SameData(said=True), Meeting(lambda row: [row], lambda: None, lambda signal: None)
    data.look([(1.0, 7.0), (2.0, 7.0)], meeting)
    assert not meeting.lost
    with pytest.raises(WorkloadError, match="trained with 3 times"):
        data.look([(1.0, 0.0)] * 3, meeting)
    assert meeting.lost
