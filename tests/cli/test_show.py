"""`fsm-train show`: a log as a page."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Callback, Flag, Phase, Scripted, State, Transition, on, run, start
from fsm_train.callbacks import schedule
from fsm_train.cli import main
from fsm_train.schedules import piecewise, warmup

from ..eventlog.log_files import forged, index, smoothed, workload
from .logs import only_a_header, three_epochs

Captured = pytest.CaptureFixture[str]


def test_show_is_a_page(log: str, capsys: Captured) -> None:
    """The plan, the callbacks as the calls that make them, a row an epoch, curves, and why it ended."""
    assert main(["show", log]) == 0

    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[0] == "plan       epochs 20, seed 0"
    assert lines[1] == "callbacks  accumulate(every=2, drop_last=False, weight='batch_size')"
    assert lines[4].startswith("           early_stopping(monitor='valid_loss', patience=3, ")
    assert lines[6].split() == ["epoch", "step", "train_loss", "valid_loss", "lr"]
    assert lines[7].split() == ["1", "2", "0.5866", "3", "0.02575"]
    assert [line for line in lines if line.startswith("valid_loss")] == ["valid_loss  █▅▆▆▁▁▂▂  3 to 1.3"]
    assert (
        lines[-1]
        == "done after 8 epochs and 16 steps: early_stopping: valid_loss has not improved on 1.0 for 3 validations"
    )


def test_show_as_json(log: str, capsys: Captured) -> None:
    """The same as data."""
    assert main(["show", log, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == {"epochs": 20, "max_steps": None, "seed": 0, "seconds": None}
    assert [row["valid_loss"] for row in found["epochs"]] == [3.0, 2.0, 2.5, 2.4, 1.0, 1.1, 1.2, 1.3]
    assert (found["phase"], found["lines"]) == ("done", 76)


def _steps(path: Path) -> None:
    run(start(workload(), max_steps=1), log=path)


def _failed(path: Path) -> None:
    @on(Phase.BATCH_END)
    def breaks(state: State) -> None:
        raise RuntimeError("oops")

    with pytest.raises(Exception, match="oops"):
        run(start(workload(), epochs=3), [breaks], log=path)


def _cut(path: Path) -> None:
    three_epochs(path)
    forged(path, lambda lines: lines.__delitem__(slice(index(lines, "epoch_end", 2) + 1, None)))


def _twice(path: Path) -> None:
    three_epochs(path)
    three_epochs(path)


def _stopped(path: Path) -> None:
    @on(Phase.EPOCH_END)
    def stops(state: State) -> Transition:
        return Transition(flags=Flag.SUSPEND)

    run(start(workload(), epochs=3), [stops], log=path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (three_epochs, "done: all of the 3 epochs of the plan"),
        (_steps, "done: all of the 1 step of the plan"),
        (_failed, "failed after 0 epochs and 1 step: CallbackError: callback 'breaks'"),
        (_cut, "under way, or cut short: the log ends at epoch_end, after 2 epochs and 8 steps"),
        (only_a_header, "nothing has happened yet"),
        (_twice, "runs       1 call of run, 1 call superseded"),
        (_stopped, "suspended after 1 epoch and 4 steps: stops"),
    ],
)
def test_show_says_how_it_ended(make: Any, sentence: str, tmp_path: Path, capsys: Captured) -> None:
    """Whatever the end was, or that there was none yet."""
    make(tmp_path / "run.jsonl")

    assert main(["show", str(tmp_path / "run.jsonl")]) == 0
    assert sentence in capsys.readouterr().out
    assert main(["show", str(tmp_path / "run.jsonl"), "--json"]) == 0


def test_show_writes_settings_as_they_were_typed(tmp_path: Path, capsys: Captured) -> None:
    """Schedules, mappings, tuples, names that were given, and callbacks of one's own."""
    rates = {"lr": piecewise({0: 1.0, 5: 0.5}), "momentum": warmup(3)}
    callbacks: list[Callback[Any]] = [
        schedule(**rates, name="rates"),
        smoothed,
        Callback("odd", (Phase.EPOCH_END,), lambda *_: None, params={"a": {1: 2}, "b": (1,), "c": print, "d": "x"}),
    ]
    run(start(Scripted(hyper={"lr": (0.1, 0.2), "momentum": 0.9}), epochs=1), callbacks, log=tmp_path / "run.jsonl")

    main(["show", str(tmp_path / "run.jsonl")])

    shown = capsys.readouterr().out
    assert "schedule(by='step', lr=piecewise(points=((0, 1.0), (5, 0.5))), " in shown
    assert "start=0.01)) as 'rates'" in shown
    assert "smoothed, at batch_end" in shown
    assert "odd(a={1: 2}, b=(1,), c=<built-in function print>, d='x')" in shown
    assert shown.splitlines()[-5].split()[-1] == "0.08..0.16"


def test_colours_are_for_terminals_that_want_them(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets none, and NO_COLOR is respected."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, no_color, coloured in ((Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)):
        monkeypatch.setitem(os.environ, "NO_COLOR", no_color)
        monkeypatch.setattr(sys, "stdout", stream)
        main(["show", log])
        assert ("\x1b[1m" in stream.getvalue()) == coloured
