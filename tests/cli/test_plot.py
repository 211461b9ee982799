"""`fsm-train plot`: a picture of the metrics."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fsm_train.cli import main

from .logs import only_a_header

Captured = pytest.CaptureFixture[str]


def test_plot_draws_the_curves(log: str, other: str, tmp_path: Path, capsys: Captured) -> None:
    """Of one or several trainings, with values that are not finite left out."""
    picture = tmp_path / "curves.png"

    for logs in ([log], [log, other]):
        assert main(["plot", *logs, "-o", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{picture}\n" * 2


def test_plot_says_what_it_cannot(log: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to draw, an unknown format, or no matplotlib."""
    only_a_header(tmp_path / "empty.jsonl")
    for logs, output, sentence in (
        ([str(tmp_path / "empty.jsonl")], "x.png", "there is no finished epoch to draw"),
        ([log], "x.nonsense", "not supported"),
    ):
        assert main(["plot", *logs, "-o", str(tmp_path / output)]) == 2
        assert sentence in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "fsm_train.eventlog.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", log, "-o", "x.png"]) == 2
    assert "pip install 'fsm-train[plot]'" in capsys.readouterr().err
