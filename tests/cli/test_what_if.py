"""`fsm-train what-if`: a row for each combination of settings."""

from __future__ import annotations

import json

import pytest

from fsm_train.cli import main

Captured = pytest.CaptureFixture[str]


def test_what_if_is_a_table(log: str, capsys: Captured) -> None:
    """Ranges, lists and values; exit 1 where something is refused."""
    assert main(["what-if", log, "early_stopping.patience=1..4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:2] == ["early_stopping.patience", "verdict"]
    assert [row[:4] for row in rows[1:]] == [
        ["1", "exact", "epoch", "3"],
        ["2", "exact", "epoch", "4"],
        ["3", "exact", "epoch", "8"],
        ["4", "censored", "-", "1"],
    ]

    assert main(["what-if", log, "early_stopping.patience=1,2", "early_stopping.mode=min", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["settings"]["early_stopping.patience"] for row in found] == [1, 2]
    assert found[0]["best"] == {"monitor": "valid_loss", "value": 2.0, "epoch": 2}

    assert main(["what-if", log, "clip_grad_norm.max_norm=2.0", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "refused"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("patience=3", "write it as early_stopping.patience=1..10"),
        ("early_stopping.patience", "write it as"),
        ("nobody.patience=3", "there is no callback 'nobody' in this log: there are accumulate, clip_grad_norm"),
        ("early_stopping.patience=-3", "patience=-3: it is a whole number from 0"),
        ("early_stopping.nonsense=3", "unexpected keyword argument 'nonsense'"),
        ("early_stopping.patience=1..99999999999", "these are 99999999999 combinations, and a table has 1 to 10000"),
        ("early_stopping.patience=3..1", "these are 0 combinations"),
        ("early_stopping.patience=--5..3", "patience='--5..3': it is a whole number from 0"),
        ("early_stopping.patience=²..3", "patience='²..3': it is a whole number from 0"),
        ("early_stopping.patience=" + "[" * 500, "it is a whole number from 0"),
        ("early_stopping.patience=" + "-" * 100_000 + "1", "it is a whole number from 0"),
        ("early_stopping.monitor=\udcff", "there is no metric '\\udcff' to monitor"),
    ],
)
def test_what_cannot_be_asked_says_so(setting: str, sentence: str, log: str, capsys: Captured) -> None:
    """On standard error, with exit 2."""
    assert main(["what-if", log, setting]) == 2
    found = capsys.readouterr()
    assert (found.out, sentence in found.err) == ("", True)
