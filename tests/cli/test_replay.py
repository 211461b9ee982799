"""`fsm-train replay`, and the option --callbacks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fsm_train.cli import main

from ..eventlog.log_files import forged

Captured = pytest.CaptureFixture[str]


def test_replay_agrees_or_differs(log: str, capsys: Captured) -> None:
    """Exit 0 and 1, with the difference as a sentence or as JSON."""
    assert main(["replay", log]) == 0
    assert capsys.readouterr().out == "agrees: 75 lines, to done after 8 epochs and 16 steps\n"

    forged(Path(log), lambda lines: lines[0]["callbacks"][3]["params"].update(patience=2))
    assert main(["replay", log]) == 1
    assert "callback 'early_stopping': recorded" in capsys.readouterr().out
    assert main(["replay", log, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["divergence"]["callback"], found["divergence"]["epoch"]) == (False, "early_stopping", 3)


def test_callbacks_are_imported_from_where_they_are_typed(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A list, a function that gives one, or a single callback; from the folder one is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_for_the_cli.py").write_text(
        "from tests.eventlog.log_files import library\n"
        "as_list = library()\n"
        "def as_function():\n    return library()\n"
        "single = library()[0]\n"
        "wrong = [1]\n"
    )

    for name in ("as_list", "as_function"):
        assert main(["replay", log, "--callbacks", f"mine_for_the_cli:{name}"]) == 0
    assert main(["replay", log, "--callbacks", "mine_for_the_cli:single"]) == 1
    capsys.readouterr()
    for name, sentence in (
        ("mine_for_the_cli:wrong", "it is no list of callbacks"),
        ("os:path", "it is no list of callbacks"),
        ("fsm_train.callbacks:checkpoint", "name a list, or a function without arguments"),
        ("mine_for_the_cli:missing", "has no attribute 'missing'"),
        ("not_there_at_all:x", "No module named 'not_there_at_all'"),
        ("mine_for_the_cli", "write it as module:name"),
    ):
        assert main(["replay", log, "--callbacks", name]) == 2
        assert sentence in capsys.readouterr().err
    assert str(tmp_path) not in sys.path
