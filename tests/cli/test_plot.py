"""`fsm-train plot`: a picture of the metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fsm_train import Scripted, run, start
from fsm_train.cli import main
from fsm_train.eventlog.plots import MAX_PANELS

from .logs import only_a_header

Captured = pytest.CaptureFixture[str]


def test_plot_draws_the_curves(log: str, other: str, tmp_path: Path, capsys: Captured) -> None:
    """Of one or several trainings, with values that are not finite left out."""
    picture = tmp_path / "curves.png"

    for logs in ([log], [log, other]):
        assert main(["plot", *logs, "-o", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{picture}\n" * 2


def test_plot_writes_json(log: str, tmp_path: Path, capsys: Captured) -> None:
    """As each command does: where the picture is."""
    picture = tmp_path / "curves.svg"

    assert main(["plot", log, "-o", str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"picture": str(picture)}


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


def test_a_picture_has_a_limited_number_of_panels(tmp_path: Path, capsys: Captured) -> None:
    """One of a thousand would take minutes, and be refused then."""
    log, picture = tmp_path / "run.jsonl", tmp_path / "curves.png"
    many = {f"valid_{number}": 0.5 for number in range(MAX_PANELS)}
    run(start(Scripted(loss=1.0, **many), epochs=1), log=log)

    assert main(["plot", str(log), "-o", str(picture)]) == 2
    assert (
        f"there are {MAX_PANELS + 1} metrics to draw, and a picture has at most {MAX_PANELS}" in capsys.readouterr().err
    )


def test_the_name_of_a_picture_may_be_no_text(log: str, tmp_path: Path, capsys: Captured) -> None:
    """It is written all the same, and shown escaped."""
    picture = tmp_path / "curves\udcff.png"

    assert main(["plot", log, "-o", str(picture)]) == 0
    assert (picture.exists(), capsys.readouterr().out) == (True, f"{tmp_path}/curves\\udcff.png\n")
