"""A log as columns: what a page shows of each row is what the log, or its replay, has there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import orjson
import pytest

from fsm_train import Flag, LogError, Phase, Scripted, State, Transition, extend, on, run, start
from fsm_train.callbacks import early_stopping, record
from fsm_train.commands import ClipGradNorm
from fsm_train.view.packing import PHASES, packed_run

from ..eventlog.log_files import forged, library, lines_of, logged, smoothed, workload
from .unpacking import ints, points, states


def packed(path: Path, name: str = "") -> dict[str, Any]:
    """The columns, as a page gets them."""
    found: dict[str, Any] = orjson.loads(orjson.dumps(packed_run(path, name).packed()))
    return found


def test_each_row_has_what_its_line_has(tmp_path: Path) -> None:
    """Counters, flags, hyper-parameters, metrics and phase of each line that counts, headers as the phase ready."""
    path = tmp_path / "run.jsonl"
    logged(path)
    run_ = packed(path)
    lines = lines_of(path)

    assert ints(run_["numbers"]) == [*range(1, len(lines) + 1)]
    assert [PHASES[int(code)] for code in ints(run_["phases"])] == ["ready", *(line["event"] for line in lines[1:])]
    for row, line in zip(states(run_), [lines[0]["start"], *lines[1:]], strict=True):
        assert row["counters"] == {name: line[name] for name in row["counters"]}
        assert (row["hyper"], row["metrics"], row["state"]["flags"]) == (line["hyper"], line["metrics"], line["flags"])
        assert row["state"].get("reason", "") == line.get("reason", "")


def test_memories_are_carried_on_from_the_answers(tmp_path: Path) -> None:
    """A line has the memory of a callback that answered with one; the rows after it have that too."""
    path = tmp_path / "run.jsonl"
    final = logged(path, [smoothed, early_stopping(patience=3)])
    rows = states(packed(path))

    assert rows[0]["memory"]["smoothed"] == [0.0, 0.0]
    assert rows[-1]["memory"]["smoothed"] == [*final.memory["smoothed"]]
    assert rows[-1]["memory"]["early_stopping"]["bad"] == final.memory["early_stopping"].bad


def test_answers_are_there_where_they_were_given(tmp_path: Path) -> None:
    """Flags, commands and reason as the log has them; a hyper-parameter that the state has is named alone."""
    path = tmp_path / "run.jsonl"
    logged(path)
    run_ = packed(path)
    said = {track["name"]: points(track) for track in run_["said"]}

    assert said["schedule"] == {row: {"sets": ["lr"]} for row in said["schedule"]}
    assert {answer["commands"][0]["$"] for answer in said["accumulate"].values()} == {"WeighLoss"}
    ((row, stopped),) = said["early_stopping"].items()
    assert stopped["flags"] == "STOP_TRAINING"
    assert stopped["reason"].startswith("valid_loss has not improved")
    assert row in ints(run_["decisions"])


def test_a_rate_that_a_command_changed_at_once_is_said_as_it_was_given(tmp_path: Path) -> None:
    """Where the state of the line has another value than the answer, the answer keeps its own."""
    path = tmp_path / "run.jsonl"
    logged(path, [*library()])
    forged(path, lambda lines: [line.update(hyper={"lr": 7.0}) for line in lines[1:]] and None)

    said = {track["name"]: points(track) for track in packed(path)["said"]}
    assert all("sets" not in answer and answer["hyper"]["lr"] != 7.0 for answer in said["schedule"].values())


def test_a_decision_is_what_was_not_said_the_last_time(tmp_path: Path) -> None:
    """A callback that says the same at each batch decides once."""

    @on(Phase.STEP_BEGIN)
    def always(state: State) -> Transition:
        """Clip."""
        return Transition(commands=(ClipGradNorm(1.0 if state.epoch < 2 else 2.0),))

    path = tmp_path / "run.jsonl"
    logged(path, [always], epochs=4)
    run_ = packed(path)

    assert [PHASES[int(ints(run_["phases"])[row])] for row in ints(run_["decisions"])] == ["step_begin"] * 2
    assert [states(run_)[row]["counters"]["epoch"] for row in ints(run_["decisions"])] == [0, 2]


def test_a_metric_has_one_point_for_each_time_that_it_was_measured(tmp_path: Path) -> None:
    """At the end of its validation; the end of the epoch repeats it, and adds those of the training."""
    path = tmp_path / "run.jsonl"
    logged(path, epochs=3)
    run_ = packed(path)
    phases = ints(run_["phases"])
    curves = {curve["name"]: points(curve) for curve in run_["curves"]}

    assert [*curves] == ["train_loss", "valid_loss"]
    assert [*curves["valid_loss"].values()] == [3.0, 2.0, 2.5]
    assert {PHASES[int(phases[row])] for row in curves["valid_loss"]} == {"valid_end"}
    assert {PHASES[int(phases[row])] for row in curves["train_loss"]} == {"epoch_end"}


def test_numbers_that_are_none_are_kept_as_the_log_has_them(tmp_path: Path) -> None:
    """NaN, infinities, and whole numbers beyond those of JavaScript."""
    path = tmp_path / "run.jsonl"
    run(start(Scripted(loss=math.nan, valid_loss=[math.inf, 1 << 60], odd=-0.0), epochs=2), [record("odd")], log=path)
    run_ = packed(path)
    curves = {curve["name"]: [*points(curve).values()] for curve in run_["curves"]}
    facts = {track["name"]: [*points(track).values()] for track in run_["facts"]}

    assert curves["train_loss"][0] == {"$float": "nan"}
    assert curves["valid_loss"][0] == {"$float": "inf"}
    assert float(curves["valid_loss"][1].get("$int")) == float(1 << 60)
    assert math.copysign(1.0, facts["odd"][0]) == -1.0


def test_a_name_that_goes_is_absent_from_there_on(tmp_path: Path) -> None:
    """A new call of `run` can have another optimizer; what its callbacks are stands in its header."""
    path = tmp_path / "run.jsonl"
    run(extend(logged(path, epochs=1), epochs=1), [early_stopping()], log=path)
    forged(path, lambda lines: lines[-1].update(hyper={"beta1": 0.9}))
    run_ = packed(path)
    rows = states(run_)

    assert ([*rows[-2]["hyper"]], [*rows[-1]["hyper"]]) == (["lr"], ["beta1"])
    assert [call["continues"] for call in run_["calls"]] == [False, True]
    assert [callback["name"] for callback in run_["calls"][1]["callbacks"]] == ["early_stopping"]


def test_only_lines_that_count_are_rows(tmp_path: Path) -> None:
    """A training that is logged to the same file again supersedes what was there."""
    path = tmp_path / "run.jsonl"
    logged(path, epochs=1)
    there = len(lines_of(path))
    logged(path, epochs=1)
    run_ = packed_run(path)

    assert (run_.superseded, run_.numbers[0], len(run_.numbers)) == (1, there + 1, there)
    assert (run_.row_of(there + 3), run_.row_of(None)) == (2, there - 1)


def test_names_and_texts_are_printable(tmp_path: Path) -> None:
    """What could turn a line around, end a script or hide is written out."""

    @on(Phase.EPOCH_END, memory="")
    def hostile(state: State, memory: str) -> Transition:
        """Say what should not be said."""
        return Transition(memory="\u202e</script>", reason="\x1b[2J")

    path = tmp_path / "run.jsonl"
    run(start(Scripted(**{"valid_a\u202egreement": 1.0}), epochs=1), [hostile], log=path)
    text = orjson.dumps(packed(path, "\u2066name")).decode()

    assert text.isprintable()
    assert "\\\\u202egreement" in text
    assert "\\\\u2066name" in text


def test_how_it_ended_is_said(tmp_path: Path) -> None:
    """In the words of `fsm-train show`; a training that is under way has not ended."""
    path = tmp_path / "run.jsonl"
    logged(path)
    assert packed(path)["ended"] == "done"
    assert packed(path)["ending"].startswith("done after 8 epochs and 16 steps: early_stopping: valid_loss")

    forged(path, lambda lines: lines.__delitem__(slice(9, None)))
    assert packed(path)["ended"] == ""
    assert packed(path)["ending"].startswith("under way")

    forged(path, lambda lines: lines.__delitem__(slice(1, None)))
    assert (packed(path)["rows"], packed(path)["ending"]) == (1, "nothing has happened yet")


def test_a_suspended_training_is_one_run(tmp_path: Path) -> None:
    """The rows of its calls follow each other, and the memories of a later call begin as it says."""
    path = tmp_path / "run.jsonl"

    @on(Phase.BATCH_END)
    def pause(state: State) -> Transition | None:
        """Leave after the second batch."""
        return Transition(flags=Flag.SUSPEND) if state.iteration == 2 else None

    state = run(start(workload(), epochs=1), [pause, smoothed], log=path)
    assert state.phase is Phase.SUSPENDED
    run(state, [smoothed], log=path)
    run_ = packed(path)

    assert [call["row"] for call in run_["calls"]] == [0, [*map(int, ints(run_["phases"]))].index(0, 1)]
    assert run_["ended"] == "done"


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    """With the sentence that reading it gives; so is a log of which nothing counts."""
    path = tmp_path / "run.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(LogError, match="line 1"):
        packed_run(path)
