"""Logs that were written once and are never written anew: what could be read then can be read now."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest

from fsm_train import Flag, LogError, Phase, State, Transition, diff, on, read_log, replay, what_if
from fsm_train.callbacks import early_stopping
from fsm_train.eventlog import Header, Line

from .make_golden import GOLDEN, counts_too_far

DIGESTS = {
    "checks-1.jsonl": "f6af7abc058e3bf1",
    "counted-1.jsonl": "79dc2bb54fb1e269",
    "history-2.jsonl": "48357f804452a387",
    "jump-1.jsonl": "56e95527c8a1cbf1",
    "library-1.jsonl": "336f2b0c86b74409",
    "newer-1.jsonl": "aef03f362c079e3c",
    "settings-1.jsonl": "fceefd5af581bdb1",
    "suspended-1.jsonl": "5febe852e2256e46",
    "torn-1.jsonl": "2e0334bcd323669b",
    "turns-2.jsonl": "536ff9551462ba99",
    "unwatched-1.jsonl": "ba1d495cf3881e8e",
}


def test_golden_logs_are_as_they_were() -> None:
    """None is changed, and none is missing: a new one is written beside them."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in GOLDEN.iterdir()}

    assert found == DIGESTS


@pytest.mark.parametrize(
    ("name", "lines", "epoch", "reason"),
    [
        ("library-1", 91, 8, "early_stopping: valid_loss has not improved on 1.0 for 3 epochs"),
        ("checks-1", 37, 3, "stop_after: 10 steps were taken"),  # from when a check was the end of an epoch
        ("settings-1", 27, 3, ""),
        ("unwatched-1", 12, 3, ""),
        ("turns-2", 123, 6, ""),  # suspended between the turns of a batch
    ],
)
def test_good_logs_agree(name: str, lines: int, epoch: int, reason: str) -> None:
    """Made from its header, each callback decides today what it decided when the log was written."""
    again = replay(GOLDEN / f"{name}.jsonl")

    assert (again.divergence, again.lines) == (None, lines)
    assert (again.state.phase, again.state.epoch, again.state.reason) == (Phase.DONE, epoch, reason)


def test_a_long_history_is_as_it_was() -> None:
    """Begun elsewhere, in several lines, and continued twice from the same place."""
    again = replay(GOLDEN / "history-2.jsonl")

    assert (again.divergence, again.lines, again.state.epoch) == (None, 15, 12)
    assert len(again.state.history) == 13
    assert math.isnan(again.state.history[0]["train_loss"])
    assert again.state.history[9] == {"valid_loss": -0.0, "steps": 2**70}
    assert math.copysign(1.0, again.state.history[9]["valid_loss"]) == -1.0
    assert [metrics["valid_loss"] for metrics in again.state.history[10:]] == [1 / 31, 1 / 34, 1 / 37]


def test_a_suspended_log_agrees_over_all_its_calls() -> None:
    """With the callback that suspended it, given anew."""

    @on(Phase.BATCH_END, memory=0)
    def pauses(state: State, times: int) -> Transition:
        return Transition(memory=times + 1, flags=Flag.SUSPEND if times % 4 == 1 else Flag.NONE)

    path = GOLDEN / "suspended-1.jsonl"
    records = list(read_log(path))

    assert sum(isinstance(record, Header) for record in records) == 5
    found = replay(path, [pauses]).divergence
    assert found is not None  # the last call was made without it
    assert (found.callback, found.epoch, found.decided) == ("pauses", 2, {"memory": 11})


def test_values_of_a_good_log_are_as_they_were() -> None:
    """Special floats, batches of unequal size, and what is counted."""
    lines = [record for record in read_log(GOLDEN / "library-1.jsonl") if isinstance(record, Line)]

    assert math.isnan(lines[-1].metrics["train_loss"])
    assert [line.course for line in lines if line.phase is Phase.LOSS_END][4] == ((7, 1),)
    assert lines[-1].samples == 8 * (4 * 32 + 7)


def test_an_old_log_can_be_asked() -> None:
    """What-if and diff on what was written before."""
    assert what_if(GOLDEN / "library-1.jsonl", [early_stopping(patience=2)]).stopped_at == 4
    assert diff(GOLDEN / "library-1.jsonl", GOLDEN / "library-1.jsonl") is None


def test_a_bad_log_is_found() -> None:
    """A callback that decided otherwise when the log was written, at its first decision."""
    found = replay(GOLDEN / "counted-1.jsonl", [counts_too_far]).divergence

    assert found is not None
    assert str(found) == (
        "line 4, batch_end (epoch 0, batch 1, step 1), callback 'counts_too_far': "
        'recorded {"memory":2}, decided {"memory":1}'
    )


@pytest.mark.parametrize(
    ("name", "line", "sentence"),
    [
        ("jump-1", None, ""),
        ("torn-1", 31, "the machine cannot go from loss_end to setup"),
        ("newer-1", 1, "this log has schema 99, and this version of fsm_train knows up to 2"),
    ],
)
def test_damaged_logs_are_found(name: str, line: int | None, sentence: str) -> None:
    """Each with the line and what is wrong with it."""
    path: Path = GOLDEN / f"{name}.jsonl"
    if line is None:
        found = replay(path).divergence
        assert found is not None
        assert found.line == 21
        return

    with pytest.raises(LogError, match=sentence) as caught:
        replay(path)
    assert caught.value.line == line
