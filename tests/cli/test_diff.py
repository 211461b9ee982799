"""`fsm-train diff`: the first difference of two logs."""

from __future__ import annotations

import json

import pytest

from fsm_train.cli import main

Captured = pytest.CaptureFixture[str]


def test_diff_shows_the_first_difference(log: str, other: str, capsys: Captured) -> None:
    """Exit 0 where there is none."""
    assert main(["diff", log, log]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", log, other]) == 1
    first, then = capsys.readouterr().out.splitlines()
    assert first.startswith('callbacks, early_stopping: {"patience":3} against {"patience":1}, at header')
    assert then.startswith("what happened then: decisions, early_stopping")
    assert main(["diff", log, other, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["then"]["kind"] == "decisions"
    assert main(["diff", log, log, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) is None
