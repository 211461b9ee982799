"""`fsm-train tail`: the lines of a log as they are written."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from fsm_train.cli import main, tail
from fsm_train.eventlog.entries import MAX_LINE_BYTES

from ..eventlog.log_files import forged, logged

Captured = pytest.CaptureFixture[str]


def test_tail_follows_a_training_that_is_under_way(
    log: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines come as they are written, torn ones when they are whole, to the end of the training."""
    whole = Path(log).read_bytes()
    live = tmp_path / "live.jsonl"
    live.write_bytes(whole[:5000])
    rest, shown = iter([whole[5000:9000], whole[9000:]]), []

    def write_on(_: float) -> None:
        shown.append(capsys.readouterr().out)
        with live.open("ab") as file:  # as a log is written: a file that is emptied first is another log
            file.write(next(rest))

    monkeypatch.setattr(time, "sleep", write_on)
    assert main(["tail", str(live)]) == 0

    there = [whole[:end].rpartition(b"\n")[0].count(b'"event":"epoch_end"') for end in (5000, 9000)]
    assert [shown[0].count("\n"), "".join(shown).count("\n")] == there
    lines = "".join([*shown, capsys.readouterr().out]).splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["epoch_end", "epoch", "1"], ["epoch_end", "epoch", "2"]]
    assert lines[-1].startswith("done          epoch 8  batch 4  step 16  early_stopping: valid_loss has not improved")
    assert len(lines) == 9


def test_tail_passes_over_what_others_write(log: str, tmp_path: Path, capsys: Captured) -> None:
    """The file of a user's own logger has other events in it."""
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(b'{"event":"hello"}\n' + Path(log).read_bytes())

    assert main(["tail", str(mixed)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_tail_of_everything(log: str, capsys: Captured) -> None:
    """Each line: what was asked for, or that something was noted; as text or as JSON."""
    assert main(["tail", "--all", log]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 75
    assert "loss_end      epoch 0  batch 0  step 0  accumulate: SKIP_STEP|SKIP_ZERO WeighLoss" in lines
    assert "clip_grad_norm: ClipGradNorm  schedule: lr=0.001" in lines[4]
    assert main(["tail", "--json", log]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["phase"] for line in found] == ["epoch_end"] * 8 + ["done"]
    assert found[0]["metrics"]["valid_loss"] == 3.0


def test_ctrl_c_ends_a_tail(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the status that shells give to it."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    forged(Path(log), lambda lines: lines.pop())
    monkeypatch.setattr(time, "sleep", interrupted)

    assert main(["tail", log]) == 130


# ------------------------------------------------------------------------------ a log begun anew


def _short(path: Path) -> bytes:
    """A training of three epochs in a file of its own, as bytes."""
    logged(path, [], epochs=3)
    return path.read_bytes()


def _unlink(live: Path, new: bytes) -> None:
    live.unlink()
    live.write_bytes(new)


def _replace(live: Path, new: bytes) -> None:
    live.with_name("new").write_bytes(new)
    live.with_name("new").replace(live)


def _empty(live: Path, new: bytes) -> None:
    live.write_bytes(new)


def _overwrite(live: Path, new: bytes) -> None:
    live.write_bytes(new + b'{"event":"of another program"}\n' * 1000)


@pytest.mark.parametrize("begin_anew", [_unlink, _replace, _empty, _overwrite])
def test_a_log_that_is_begun_anew_is_followed_from_its_beginning(
    begin_anew: Callable[[Path, bytes], None],
    log: str,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deleted, replaced, emptied or written over: it says so, and the new one has its lines."""
    live, new = tmp_path / "live.jsonl", _short(tmp_path / "short.jsonl")
    live.write_bytes(Path(log).read_bytes()[:9000])
    changes = iter([lambda: begin_anew(live, new)])
    monkeypatch.setattr(time, "sleep", lambda _: next(changes)())

    assert main(["tail", str(live)]) == 0

    told = capsys.readouterr()
    assert "live.jsonl: the log was begun anew; what follows is the new one" in told.err
    assert [line.split()[0] for line in told.out.splitlines()[-4:]] == ["epoch_end"] * 3 + ["done"]


def test_a_log_that_is_written_over_while_it_is_read_is_followed_too(
    log: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that comes next does not fit, since it is of the new log."""
    live, new = tmp_path / "live.jsonl", _short(tmp_path / "short.jsonl")
    live.write_bytes(Path(log).read_bytes())
    lines = tail.follow(live)
    for _ in range(60):
        next(lines)
    size = live.stat().st_size
    live.write_bytes(new * (size // len(new) + 2))

    with pytest.raises(tail.BegunAnewError, match="the log was begun anew"):
        deque(lines)


def test_a_log_that_is_damaged_is_not_taken_for_a_new_one(log: str, capsys: Captured) -> None:
    """It is refused, with the line."""
    data = Path(log).read_bytes().splitlines(keepends=True)
    Path(log).write_bytes(b"".join([*data[:40], b"{}x\n", *data[40:]]))

    assert main(["tail", log]) == 2
    assert "line 41: it is no JSON" in capsys.readouterr().err


def test_a_log_that_is_deleted_is_not_waited_for_in_vain(
    log: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds it says so; one that comes in that time is followed."""
    new = _short(tmp_path / "short.jsonl")
    for comes, status, sentence in ((False, 2, "the log was deleted while it was followed"), (True, 0, "begun anew")):
        live = tmp_path / f"live-{comes}.jsonl"
        live.write_bytes(Path(log).read_bytes()[:9000])
        changes = iter([live.unlink, *[lambda: None] * 5, *([lambda: live.write_bytes(new)] if comes else [])])  # noqa: B023
        monkeypatch.setattr(time, "sleep", lambda _: next(changes, lambda: None)())  # noqa: B023

        assert main(["tail", str(live)]) == status
        assert sentence in capsys.readouterr().err


def test_tail_holds_no_more_than_a_line_may_have(tmp_path: Path, capsys: Captured) -> None:
    """A line without an end is refused, and not read into memory."""
    path = tmp_path / "run.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # a hole: zeros that take no room on the disk
    tracemalloc.start()

    assert main(["tail", str(path)]) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "line 1: it is longer than 16 MiB" in capsys.readouterr().err
    assert peak < 3 * MAX_LINE_BYTES
