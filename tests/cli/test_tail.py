"""`fsm-train tail`: the lines of a log as they are written."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from fsm_train.cli import main

from ..eventlog.log_files import forged

Captured = pytest.CaptureFixture[str]


def test_tail_follows_a_training_that_is_under_way(log: str, tmp_path: Path, capsys: Captured) -> None:
    """Lines come as they are written, torn ones when they are whole, to the end of the training."""
    whole = Path(log).read_bytes()
    live = tmp_path / "live.jsonl"
    live.write_bytes(whole[:5000])

    def write_on() -> None:
        for end in (9000, len(whole)):
            time.sleep(0.3)
            live.write_bytes(whole[:end])

    writer = threading.Thread(target=write_on)
    writer.start()
    assert main(["tail", str(live)]) == 0
    writer.join()

    lines = capsys.readouterr().out.splitlines()
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
