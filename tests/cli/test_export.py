"""`fsm-train export`: a tracker that is filled afterwards has what a live one would have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fsm_train import CallbackError, Scripted, extend, run, start
from fsm_train.callbacks import early_stopping, record
from fsm_train.cli import main
from fsm_train.sinks import csv, tensorboard

from ..eventlog.log_files import forged
from ..eventlog.test_long_logs import with_hidden_header
from ..sinks.test_tensorboard import hparams_in, scalars_in, text_in
from ..sinks.tracked import EXPORTED, SEEN, breaks, in_pieces, suspends, whole

Captured = pytest.CaptureFixture[str]


def export(log: Path, kind: str, target: Path, options: Sequence[str] = EXPORTED) -> int:
    return main(["export", str(log), kind, str(target), *options])


def test_a_table_is_that_of_the_training(tmp_path: Path, capsys: Captured) -> None:
    """To the byte, also where the log was written in several calls of run, one of them superseded."""
    log, live, made = tmp_path / "run.jsonl", tmp_path / "live.csv", tmp_path / "made.csv"
    whole(csv(live, **SEEN), log=log)

    assert export(log, "csv", made) == 0
    assert made.read_bytes() == live.read_bytes()
    assert capsys.readouterr() == (f"{made}  3 epochs\n", "")
    in_pieces(lambda: csv(tmp_path / "pieces.csv", **SEEN), log=tmp_path / "pieces.jsonl")
    assert export(tmp_path / "pieces.jsonl", "csv", made) == 0
    assert made.read_bytes() == (tmp_path / "pieces.csv").read_bytes() == live.read_bytes()


def test_a_training_in_turns_is_exported(tmp_path: Path) -> None:
    """With the facts of each player, and the rates of all optimizers."""
    log, live, made = tmp_path / "run.jsonl", tmp_path / "live.csv", tmp_path / "made.csv"
    work = Scripted(batches=4, players={"D": 1, "G": 2}, loss=lambda state: 1.0 + len(state.player) + state.step)
    sink = csv(live, facts=["loss"], every=1)
    run(start(work, epochs=2), [record("loss")], log=log, sinks=[sink])

    assert export(log, "csv", made, ["--facts", "loss"]) == 0
    assert made.read_bytes() == live.read_bytes()


def test_events_are_those_of_the_training(tmp_path: Path) -> None:
    """Scalars, settings and how it ended."""
    log, live, made = tmp_path / "run.jsonl", tmp_path / "live", tmp_path / "made"
    whole(tensorboard(live, **SEEN), log=log)

    assert export(log, "tensorboard", made) == 0
    assert scalars_in(made) == scalars_in(live)
    assert text_in(made, "config") == text_in(live, "config")
    assert text_in(made, "ended") == text_in(live, "ended") == ["all 3 epochs done"]
    tag = "_hparams_/session_start_info"
    assert hparams_in(made, tag).session_start_info.hparams == hparams_in(live, tag).session_start_info.hparams


def test_calls_of_run_that_belong_together_are_one_run(tmp_path: Path) -> None:
    """With the plan and the callbacks of the last one, and its end alone."""
    log = tmp_path / "run.jsonl"
    in_pieces(lambda: csv(tmp_path / "pieces.csv"), log=log)
    work = Scripted(valid_loss=0.5)
    final = run(start(work, epochs=1), [early_stopping(patience=3)], log=tmp_path / "extended.jsonl")
    run(extend(final, epochs=1), [early_stopping(patience=5)], log=tmp_path / "extended.jsonl")

    assert export(log, "tensorboard", tmp_path / "pieces") == 0
    assert text_in(tmp_path / "pieces", "ended") == ["all 3 epochs done"]
    forged(log, lambda lines: lines.__delitem__(slice(-3, None)))
    assert export(log, "tensorboard", tmp_path / "cut") == 0
    assert text_in(tmp_path / "cut", "ended") == ["cut off before its end"]  # not suspended, as it once was
    assert export(tmp_path / "extended.jsonl", "tensorboard", tmp_path / "extended") == 0
    assert text_in(tmp_path / "extended", "ended") == ["all 2 epochs done"]
    (config,) = text_in(tmp_path / "extended", "config")
    assert "| plan.epochs | 2 |" in config
    assert "| early_stopping.patience | 5 |" in config


@pytest.mark.parametrize("ends", ["failed", "suspended", "under way"])
def test_how_it_ended_is_exported(ends: str, tmp_path: Path) -> None:
    """As a live sink says it; a log that just stops says that."""
    log = tmp_path / "run.jsonl"
    if ends == "failed":
        with pytest.raises(CallbackError):
            whole(tensorboard(tmp_path / "live"), log=log, further=[breaks])
    else:
        whole(tensorboard(tmp_path / "live"), log=log, further=[suspends(5)])
    if ends == "under way":
        forged(log, lambda lines: lines.__delitem__(slice(-3, None)))

    assert export(log, "tensorboard", tmp_path / "made") == 0
    expected = ["cut off before its end"] if ends == "under way" else text_in(tmp_path / "live", "ended")
    assert text_in(tmp_path / "made", "ended") == expected


def test_facts_that_a_log_does_not_have_are_said(tmp_path: Path, capsys: Captured) -> None:
    """With how they get into the next one; what there is, is written."""
    log = tmp_path / "run.jsonl"
    run(start(Scripted(loss=0.5), epochs=2), log=log)

    assert main(["export", str(log), "csv", str(tmp_path / "run.csv"), "--facts", "loss", "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out) == {"target": str(tmp_path / "run.csv"), "epochs": 2}
    assert found.err == (
        "fsm-train: the log has no loss of batches: record('loss') among the callbacks of a training puts it there\n"
    )


def test_what_cannot_be_filled_is_said(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is missing, a file of somebody else, an argument that makes no sense, a place that is none."""
    log, people = tmp_path / "run.jsonl", tmp_path / "people.csv"
    whole(log=log)
    people.write_text("name,age\n")
    (tmp_path / "file").write_text("")

    assert export(log, "csv", people) == 2
    assert "csv refuses it: ValueError: " in capsys.readouterr().err
    assert export(log, "csv", tmp_path / "run.csv", ["--every", "0"]) == 2
    assert "every=0: it is a whole number from 1" in capsys.readouterr().err
    assert export(log, "csv", tmp_path / "file" / "run.csv") == 2
    assert "File exists" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert export(log, "wandb", tmp_path / "runs") == 2
    assert "wandb(…) needs wandb: pip install 'fsm-train[wandb]'" in capsys.readouterr().err


def test_a_log_that_cannot_be_exported_is_refused(tmp_path: Path, capsys: Captured) -> None:
    """One whose turns are not those of its header, and one of whose calls none counts; nothing else is made of it."""
    log = tmp_path / "run.jsonl"

    def turn_of_another(lines: list[dict[str, Any]]) -> None:
        turn = next(line for line in lines if line.get("player"))
        turn["player"] = "X"

    def player_that_is_none(lines: list[dict[str, Any]]) -> None:
        lines[0]["start"]["players"] = {"": 1}

    for forge, sentence in ((turn_of_another, "turns are not those"), (player_that_is_none, "player")):
        work = Scripted(batches=2, players={"D": 1, "G": 1})
        log.unlink(missing_ok=True)
        run(start(work, epochs=1), [record("loss")], log=log)
        forged(log, forge)
        assert export(log, "csv", tmp_path / "run.csv") == 2
        assert sentence in capsys.readouterr().err
    whole(log=(none := tmp_path / "none.jsonl"))
    with_hidden_header(none)
    assert export(none, "csv", tmp_path / "run.csv") == 2
    assert capsys.readouterr().err == f"fsm-train: {none}: no call of run in it counts\n"


def test_torch_is_not_needed(tmp_path: Path) -> None:
    """Neither by the command nor by what it fills."""
    log = tmp_path / "run.jsonl"
    whole(log=log)
    code = (
        "import sys; sys.modules['torch'] = None; from fsm_train.cli import main\n"
        f"sys.exit(sum(main(['export', {str(log)!r}, kind, sys.argv[1] + kind]) for kind in ('csv', 'tensorboard')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "made-")], check=True)

    assert (tmp_path / "made-csv").is_file()
    assert (tmp_path / "made-tensorboard").is_dir()
