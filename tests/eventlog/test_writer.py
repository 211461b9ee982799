"""Writing: what is in a log depends on the training alone, is bounded, and is never the end of a training."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import structlog
import torch

from fsm_train import (
    EventLog,
    Flag,
    LogError,
    Phase,
    Scripted,
    State,
    Transition,
    extend,
    on,
    read_log,
    replay,
    run,
    start,
)
from fsm_train.callbacks import checkpoint
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.eventlog import Header, Line
from fsm_train.sinks import progress
from tests import diabetes_training
from tests.diabetes_training import weights_of

from .log_files import library, lines_of, logged, smoothed, workload


def test_a_training_that_nobody_watches_writes_a_few_lines_an_epoch(tmp_path: Path) -> None:
    """Whatever the number of batches: they are run-length encoded."""
    sizes = []
    for batches in (10, 10_000):
        path = tmp_path / f"{batches}.jsonl"
        run(start(Scripted(batches=batches, valid_loss=1.0), epochs=3), log=path)
        assert len(lines_of(path)) == 1 + 1 + 3 * 3 + 2
        sizes.append(path.stat().st_size)

    assert sizes[1] - sizes[0] < 200


def test_every_look_at_a_callback_has_a_line(tmp_path: Path) -> None:
    """Also where it says nothing; and none where its `every` lets it not be consulted."""

    @on(Phase.BATCH_END, every=3)
    def rarely(state: State) -> None:
        """Looks."""

    logged(tmp_path / "run.jsonl", [rarely], epochs=2)

    lines = [line for line in lines_of(tmp_path / "run.jsonl") if line["event"] == "batch_end"]
    assert [line["iteration"] for line in lines] == [3, 6]


def test_further_phases_and_facts_can_be_asked_for(tmp_path: Path) -> None:
    """The log's own wishes are measured, and replayed."""
    path = tmp_path / "run.jsonl"
    run(start(workload(), epochs=2), log=EventLog(path, phases=[Phase.BATCH_END], facts=["loss"]))

    losses = [line["facts"]["loss"] for line in lines_of(path) if line["event"] == "batch_end"]
    assert losses == [1 / (1 + i) for i in range(8)]
    assert replay(path).ok


def test_what_others_ask_for_is_not_in_the_log(tmp_path: Path) -> None:
    """A progress bar reads the loss when it likes; the log is the same with it and without."""
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True)
    logs = []
    for sinks in ([], [progress(interval=0, console=console)]):
        path = tmp_path / f"{len(sinks)}.jsonl"
        run(start(workload(), epochs=2), [smoothed, _each_valid_batch], log=path, sinks=sinks)
        logs.append(path.read_bytes())

    assert logs[0] == logs[1]


class _Curious:
    """A sink that reads the loss of each batch."""

    at = (Phase.BATCH_END,)
    needs = frozenset({"loss"})
    interval = 0.0

    def open(self, state: State, callbacks: Any) -> None:
        """Nothing to do."""

    def see(self, state: State, answers: Any) -> None:
        assert state.facts["loss"] > 0

    def close(self) -> None:
        """Nothing to do."""


def test_a_fact_that_only_a_sink_reads_is_not_in_a_line(tmp_path: Path) -> None:
    """Also at a phase that has a line for each batch."""
    logs = []
    for sinks in ([], [_Curious()]):
        path = tmp_path / f"{len(sinks)}.jsonl"
        run(start(workload(), epochs=2), [_each_batch], log=path, sinks=sinks)
        logs.append(path.read_bytes())

    assert logs[0] == logs[1]


@on(Phase.BATCH_END)
def _each_batch(state: State) -> None:
    """Looks, and needs nothing."""


@on(Phase.VALID_BATCH_END)
def _each_valid_batch(state: State) -> None:
    """Looks, and needs nothing."""


def test_answers_are_written_without_what_they_leave_as_it_is(tmp_path: Path) -> None:
    """Flags, hyper-parameters, memory, commands and a reason, each only where there is one."""

    @on(Phase.EPOCH_END, memory=0)
    def says(state: State, times: int) -> Transition:
        return Transition(flags=Flag.STOP_TRAINING, hyper={"lr": 0.5}, memory=1, reason="enough")

    logged(tmp_path / "run.jsonl", [says])
    line = next(line for line in lines_of(tmp_path / "run.jsonl") if line["event"] == "epoch_end")

    assert line["answers"] == {
        "says": {"flags": "STOP_TRAINING", "hyper": {"lr": 0.5}, "memory": 1, "reason": "enough"}
    }
    assert (line["flags"], line["hyper"], line["reason"]) == ("STOP_TRAINING", {"lr": 0.5}, "says: enough")


def test_hyper_parameters_of_groups_are_lists(tmp_path: Path) -> None:
    """One value per parameter group, before and after they are set."""

    @on(Phase.EPOCH_BEGIN)
    def halve(state: State) -> Transition:
        lr: Any = state.hyper["lr"]
        return Transition(hyper={"lr": tuple(value / 2 for value in lr)})

    path = tmp_path / "run.jsonl"
    run(start(Scripted(hyper={"lr": (0.2, 0.4)}), epochs=1), [halve], log=path)

    assert [line.get("hyper") for line in lines_of(path)[2:4]] == [{"lr": [0.1, 0.2]}, {"lr": [0.1, 0.2]}]
    assert replay(path, [halve]).ok
    assert {line.hyper["lr"] for line in read_log(path) if isinstance(line, Line)} == {(0.2, 0.4), (0.1, 0.2)}


@pytest.mark.parametrize("value", [1 << 64, 1 << 70, (1, 1 << 64)])
def test_a_hyper_parameter_beyond_64_bits_is_written(value: Any, tmp_path: Path) -> None:
    """JSON has no form for it that each reader takes, so it is text; the log is no shorter for that."""

    @on(Phase.EPOCH_BEGIN)
    def far(state: State) -> Transition:
        return Transition(hyper={"lr": value})

    path = tmp_path / "run.jsonl"
    final = run(start(Scripted(hyper={"lr": (0, 0) if isinstance(value, tuple) else 0}), epochs=1), [far], log=path)

    assert final.notes == ()
    assert replay(path, [far]).state.hyper == {"lr": value}


def test_one_log_can_be_used_for_several_calls(tmp_path: Path) -> None:
    """The same `EventLog` goes on where it was."""
    log, work = EventLog(tmp_path / "run.jsonl"), workload()
    run(extend(run(start(work, epochs=1), log=log), epochs=1), log=log)

    assert replay(tmp_path / "run.jsonl").ok
    assert sum(isinstance(record, Header) for record in read_log(tmp_path / "run.jsonl")) == 2


# ------------------------------------------------------------------------------- through structlog


def test_a_logger_of_ones_own_gets_each_line_as_an_event(tmp_path: Path) -> None:
    """With whatever is bound to it, through whatever processors; and such a file is a log all the same."""
    path = tmp_path / "everything.jsonl"
    with path.open("w") as file:
        logger = structlog.wrap_logger(
            structlog.WriteLogger(file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.JSONRenderer(serializer=json.dumps, sort_keys=True),
            ],
        ).bind(run_id="a17", rank=3)
        logger.info("something else")
        final = run(start(workload(), epochs=2, seed=0), library(), log=EventLog(logger))
        logger.info("and more")

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all((line["run_id"], line["rank"], line["level"]) == ("a17", 3, "info") for line in lines)
    records = list(read_log(path))
    assert len(records) == len(lines) - 2
    assert records[3].bound.keys() == {"run_id", "rank", "level", "timestamp"}
    assert replay(path).state == attrs.evolve(final, workload=None)


def test_two_trainings_through_one_logger_are_two_logs(tmp_path: Path) -> None:
    """Each begins anew, and the last one counts."""
    path = tmp_path / "run.jsonl"
    with path.open("w") as file:
        logger = structlog.wrap_logger(structlog.WriteLogger(file), processors=[structlog.processors.JSONRenderer()])
        for epochs in (3, 2):
            run(start(workload(), epochs=epochs), [smoothed], log=EventLog(logger))

    assert replay(path, [smoothed]).state.epoch == 2


def test_keys_can_be_bound_to_the_lines_of_a_file(tmp_path: Path) -> None:
    """`run_id`, rank, or anything else, in each line."""
    path = tmp_path / "run.jsonl"
    run(start(workload(), epochs=1), log=EventLog(path, run_id="a17", rank=0))

    assert all((line["run_id"], line["rank"]) == ("a17", 0) for line in lines_of(path))
    assert replay(path).ok


@pytest.mark.parametrize(
    ("to", "bound", "error", "sentence"),
    [
        ("run.jsonl", {"seq": 1, "run_id": 2}, ValueError, "seq: a log has keys of its own"),
        ("run.jsonl.gz", {}, ValueError, "a compressed log can be read, but not written"),
        (3, {}, TypeError, "log=3: give a path, or a logger of structlog"),
        ("run.jsonl", {"run_id": 1 << 64}, TypeError, "run_id=18446744073709551616 cannot be written as JSON"),
        ("run.jsonl", {"folder": Path("runs")}, TypeError, "folder=.* cannot be written as JSON"),
    ],
)
def test_what_cannot_be_written_to_is_refused_at_once(
    to: Any, bound: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    """Here, and not an hour later."""
    with pytest.raises(error, match=sentence):
        EventLog(to, **bound)


# --------------------------------------------------------------------------------- when it is safe


class _Watched:
    """Notes what is flushed and synced."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda number: self.synced.append(self.lines()))

    def lines(self) -> int:
        return self.path.read_bytes().count(b"\n")


def test_lines_are_safe_after_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flush an epoch, and one that goes to the disk at the end."""
    watched = _Watched(tmp_path / "run.jsonl", monkeypatch)
    seen: list[int] = []

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_END)
    def look(state: State) -> None:
        seen.append(watched.lines())

    logged(watched.path, [look], epochs=3)

    assert sorted(set(seen)) == [1, 9, 16]
    assert watched.synced == [watched.lines()]


def test_lines_are_on_the_disk_with_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is no use without the log that leads there."""
    watched = _Watched(tmp_path / "run.jsonl", monkeypatch)

    @on(Phase.BATCH_END)
    def save(state: State) -> Transition | None:
        return Transition(commands=(SaveCheckpoint("folder", "name"),)) if state.iteration == 2 else None

    logged(watched.path, [save], epochs=1)

    (at_checkpoint, _) = watched.synced
    assert lines_of(watched.path)[at_checkpoint - 1]["iteration"] == 2


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/dev/full", "nothing is written .No space left on device."),
    ],
)
def test_a_log_that_cannot_be_written_is_a_warning(path: str, sentence: str) -> None:
    """The training goes on, is the same, and its last state says that the log is incomplete."""
    with pytest.warns(RuntimeWarning, match=f"{path}: the log is incomplete, {sentence}") as caught:
        final = logged(Path(path))

    assert len(caught) == 1
    assert final.phase is Phase.DONE
    (note,) = final.notes
    assert "the log is incomplete" in note
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert final == run(start(workload(), epochs=8, seed=0), library())


@pytest.mark.parametrize("where", ["a file/run.jsonl", "a file/runs/run.jsonl"])
def test_a_path_that_can_be_no_log_is_an_error_before_the_first_batch(where: str, tmp_path: Path) -> None:
    """With the path; a folder that is not there is made."""
    (tmp_path / "a file").write_text("mine")
    begun = []

    @on(Phase.SETUP)
    def begin(state: State) -> None:
        begun.append(state)

    with pytest.raises(LogError, match=re.escape(f"{tmp_path / where}: the log cannot be written")):
        run(start(workload(), epochs=1), [begin], log=tmp_path / where)
    assert not begun
    assert (tmp_path / "a file").read_text() == "mine"

    logged(tmp_path / "new" / "runs" / "run.jsonl")
    assert replay(tmp_path / "new" / "runs" / "run.jsonl").ok


@pytest.mark.parametrize("there", [False, True])
def test_a_log_without_permission_is_refused(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a file that is there and may not be read: who it belongs to keeps it, and nothing is trained."""
    path = tmp_path / "run.jsonl"
    if there:
        path.write_text("not for you")
    opened = Path.open

    def refused(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(LogError, match=r"the log cannot be written .Permission denied."):
        logged(path)
    monkeypatch.undo()
    assert (path.read_text() if path.exists() else None) == ("not for you" if there else None)


def test_a_disk_that_fills_up_is_said_with_what_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before can be read, and replayed to there."""
    path, log = tmp_path / "run.jsonl", EventLog(tmp_path / "run.jsonl")
    flush = log._flush

    def full(*, sync: bool = False) -> None:
        if log._seq > 20:
            raise OSError(28, "No space left on device")
        flush(sync=sync)

    monkeypatch.setattr(log, "_flush", full)
    with pytest.warns(RuntimeWarning, match="its first 16 lines are written .No space left"):
        final = run(start(workload(), epochs=8), [smoothed], log=log)

    assert final.epoch == 8
    assert replay(path, [smoothed]).ok


def test_a_training_that_fails_has_its_last_line(tmp_path: Path) -> None:
    """And the file is closed."""

    @on(Phase.BATCH_END)
    def fails(state: State) -> None:
        raise RuntimeError("oops")

    log = EventLog(tmp_path / "run.jsonl")
    with pytest.raises(Exception, match="oops"):
        run(start(workload(), epochs=1), [fails], log=log)

    last = lines_of(tmp_path / "run.jsonl")[-1]
    assert (last["event"], "oops" in last["error"]) == ("failed", True)
    assert log._file is None


def test_folder_of_checkpoints_is_no_log(tmp_path: Path) -> None:
    """It is not there yet when the log is named; nothing is trained."""
    work = diabetes_training.workload()
    before = weights_of(work.model)
    with pytest.raises(LogError, match=r"runs: the log cannot be written \(it is a folder, perhaps that of the check"):
        run(start(work, epochs=1), [checkpoint(tmp_path / "runs")], log=tmp_path / "runs")
    assert torch.equal(weights_of(work.model), before)


# --------------------------------------------------------------------------------------- going on


def test_something_else_is_never_written_over(tmp_path: Path) -> None:
    """A file that is no log is refused before anything is trained."""
    path = tmp_path / "thesis.txt"
    path.write_text("three years of work\n")

    with pytest.raises(LogError, match=r"thesis\.txt, line 1: it is no JSON"):
        logged(path)
    path.write_text("three years of work")
    with pytest.raises(LogError, match=r"it is no log, and will not be written over: give another path"):
        logged(path)
    assert path.read_text() == "three years of work"


def test_an_empty_file_is_a_log_that_begins(tmp_path: Path) -> None:
    """As mktemp leaves one."""
    path = tmp_path / "run.jsonl"
    path.touch()
    logged(path)

    assert replay(path).ok


@pytest.mark.parametrize("missing", [1, 40])
def test_a_torn_line_is_taken_off_before_going_on(missing: int, tmp_path: Path) -> None:
    """After a crash the log is continued behind its last whole line, and the header says what was torn off."""
    path, work = tmp_path / "run.jsonl", workload()
    final = run(start(work, epochs=2), [smoothed], log=path)
    path.write_bytes(path.read_bytes()[:-missing])
    run(extend(final, epochs=1), [smoothed], log=path)

    second = [line for line in lines_of(path) if line["event"] == "header"][1]
    assert ("torn" in second) == (missing == 40)
    assert len(list(read_log(path))) == len(lines_of(path))


def test_text_that_is_no_unicode_is_written_all_the_same(tmp_path: Path) -> None:
    """A file name with a stray byte in an error does not cost the log."""

    class Missing(Scripted):
        def forward(self, state: State | None = None) -> None:
            raise FileNotFoundError("bad\udc80name")

    path = tmp_path / "run.jsonl"
    with pytest.raises(FileNotFoundError):
        run(start(Missing(), epochs=1), log=path)

    (*_, last) = read_log(path)
    assert isinstance(last, Line)
    assert last.error == "FileNotFoundError: bad\udc80name"
    assert replay(path).ok


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    """Anybody can read it with anything."""
    logged(tmp_path / "run.jsonl")

    header = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])

    assert header["start"]["plan"] == {"epochs": 8, "max_steps": None, "seed": 0}
    assert header == orjson.loads(orjson.dumps(header))


def test_closing_a_log_again_does_nothing(tmp_path: Path) -> None:
    """Neither to it nor to the one that has opened the file since then."""
    path = tmp_path / "run.jsonl"
    first, second = EventLog(path), EventLog(path)
    run(start(Scripted(), epochs=1), sinks=[first])

    @on(Phase.EPOCH_END)
    def close_the_first(state: State) -> None:
        first.close()
        with pytest.raises(LogError, match="another run of this process is writing this log"):
            run(start(Scripted(), epochs=1), log=path)

    run(start(Scripted(), epochs=1), [close_the_first], sinks=[second])
    first.close()
    assert len([line for line in lines_of(path) if line["event"] == "header"]) == 2
