"""`fsm-train diagnose`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fsm_train import Scripted, run, start
from fsm_train.cli import main

Captured = pytest.CaptureFixture[str]


def test_diagnose_says_what_is_wrong(tmp_path: Path, capsys: Captured) -> None:
    """Exit 1, with each finding, its evidence and what to try; or the same as JSON."""
    path = str(tmp_path / "run.jsonl")
    work = Scripted(batches=2, train_loss=[2.3] * 8)
    run(start(work, epochs=8), log=path)

    assert main(["diagnose", path]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "loss does not fall (possible): train_loss stays at about 2.3 until epoch 8"
    assert shown[1] == "  seen: train_loss is 2.3 (epoch 1, line 4); train_loss is 2.3 (epoch 8, line 18)"
    assert shown[2].startswith("  try:  another learning rate")

    assert main(["diagnose", path, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    (finding,) = data["findings"]
    assert (finding["illness"], finding["certainty"]) == ("loss does not fall", "possible")
    assert finding["evidence"][1] == {"name": "train_loss", "value": 2.3, "epoch": 8, "line": 18}
    assert data["not_judged"]["gradients vanish"].endswith("record('grad_norm')")


def test_a_value_that_is_not_finite_is_as_in_a_log(tmp_path: Path, capsys: Captured) -> None:
    """JSON has no form of its own for it."""
    path = str(tmp_path / "run.jsonl")
    run(start(Scripted(train_loss=[1.0, math.nan]), epochs=2), log=path)

    assert main(["diagnose", path, "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["evidence"] == [{"name": "train_loss", "value": {"$float": "nan"}, "epoch": 2, "line": 6}]


def test_diagnose_finds_nothing(log: str, capsys: Captured) -> None:
    """Exit 0, and what could not be judged, with what to record for it."""
    assert main(["diagnose", log]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "no known illness was found"
    assert all(line.startswith("not judged: ") for line in shown[1:])

    assert main(["diagnose", log, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
