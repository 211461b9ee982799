"""What is found out before the page shows it stands at the right rows."""

from __future__ import annotations

from pathlib import Path

from fsm_train import diff, what_if
from fsm_train.callbacks import early_stopping
from fsm_train.cli.what_if import sweep_of
from fsm_train.view.answers import difference, packed_sweep, replay_verdict
from fsm_train.view.packing import packed_run

from ..eventlog.log_files import forged, index, library, logged, smoothed


def test_a_difference_has_the_rows_of_both_runs(tmp_path: Path) -> None:
    """And so has what happened then."""
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    logged(one)
    logged(other, [*library()[:3], early_stopping(patience=1)])
    runs = packed_run(one), packed_run(other)

    packed = difference(one, runs[0], other, runs[1])
    found = diff(one, other)
    assert found is not None
    assert found.then is not None
    assert packed is not None
    assert (packed["kind"], packed["what"], packed["a"]) == ("callbacks", "early_stopping", {"patience": 3})
    assert packed["rows"] == [0, 0]
    assert [run.numbers[row] for run, row in zip(runs, packed["then"]["rows"], strict=True)] == [*found.then.lines]
    assert difference(one, runs[0], one, runs[0]) is None


def test_a_difference_at_an_end_is_at_the_last_row(tmp_path: Path) -> None:
    """Where one of the logs has no line."""
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    logged(one)
    logged(other)
    forged(other, lambda lines: lines.__delitem__(slice(-3, None)))
    runs = packed_run(one), packed_run(other)

    packed = difference(one, runs[0], other, runs[1])
    assert packed is not None
    assert packed["rows"][1] == len(runs[1].numbers) - 1


def test_a_replay_agrees_differs_or_cannot_be_made(tmp_path: Path) -> None:
    """Where it differs, the verdict has the row."""
    path = tmp_path / "run.jsonl"
    logged(path)
    assert replay_verdict(path, packed_run(path))["verdict"] == "agrees"

    def forge(lines: list[dict[str, object]]) -> None:
        lines[index(lines, "valid_end", 2)]["flags"] = "STOP_EPOCH"

    forged(path, forge)
    run = packed_run(path)
    verdict = replay_verdict(path, run)
    assert verdict["verdict"] == "differs"
    assert run.packed()["rows"] > verdict["row"] > 0

    logged(path, [smoothed])
    assert replay_verdict(path, packed_run(path))["verdict"] == "unknown"
    text = replay_verdict(path, packed_run(path))["text"]
    assert text.startswith("not replayed: run.jsonl, line")
    assert "smoothed" in text
    assert str(tmp_path) not in text


def test_a_verdict_stands_where_it_falls(tmp_path: Path) -> None:
    """At the line that ends the training, or the last one; with its setting, its reason and the best until then."""
    path = tmp_path / "run.jsonl"
    logged(path, epochs=20)
    run = packed_run(path)
    marks = packed_sweep(sweep_of(str(path), ["early_stopping.patience=1..9"]), run)

    assert [mark["label"] for mark in marks] == [*map(str, range(1, 10))]
    for mark, patience in zip(marks, range(1, 10), strict=True):
        answer = what_if(path, [early_stopping(patience=patience)])
        assert (mark["verdict"], mark["stopped"], mark["why"]) == (answer.verdict, answer.stopped_at, answer.why)
        assert run.numbers[mark["row"]] == answer.line
        assert mark["best"] is not None
        assert mark["setting"] == f"early_stopping.patience={patience}"
    assert [mark["verdict"] for mark in marks] == ["exact"] * 3 + ["censored"] * 6


def test_a_verdict_may_have_no_best(tmp_path: Path) -> None:
    """Where a decision would have changed what is trained."""
    path = tmp_path / "run.jsonl"
    logged(path)
    (mark,) = packed_sweep(sweep_of(str(path), ["accumulate.every=3"]), packed_run(path))

    assert (mark["verdict"], mark["best"]) == ("refused", None)
