"""`fsm-train checkpoints`: what there is, and whether each byte of it is as it was written. Without torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import CheckpointError, Supervised, load_weights, run, start
from fsm_train.callbacks import checkpoint, ema
from fsm_train.checkpoints import summary
from fsm_train.checkpoints.manifest import MANIFEST, STATE, TENSORS
from fsm_train.cli import main

Captured = pytest.CaptureFixture[str]


def _checkpoint(path: Path, number: int) -> Path:
    """A checkpoint as `fsm_train.checkpoints.folder` leaves one, of bytes that are never loaded."""
    path.mkdir(parents=True)
    data = {STATE: b"{}", TENSORS: bytes(1_500_000)}
    for name, content in data.items():
        (path / name).write_bytes(content)
    sums = {name: [len(content), hashlib.sha256(content).hexdigest()] for name, content in data.items()}
    place = {"iteration": 20 * number, "step": 10 * number, "written": 86400.0 * number, "drop": []}
    text = json.dumps({"format": 1, "number": number, "place": place, "files": sums}).encode()
    (path / MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    return path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three good checkpoints, and what else may lie there."""
    for number, name in enumerate(("epoch-00001", "epoch-00002", "step-00000030"), 1):
        _checkpoint(tmp_path / "runs" / name, number)
    (tmp_path / "runs" / "plots").mkdir()
    (tmp_path / "runs" / ".writing-epoch-00004-12345678").mkdir()
    (tmp_path / "runs" / ".writing-epoch-00004-12345678" / STATE).write_bytes(b"{}")
    return tmp_path / "runs"


def test_checkpoints_are_listed_and_verified(three: Path, capsys: Captured) -> None:
    """The newest first, each on a line, with the one that a training resumes from."""
    assert main(["checkpoints", str(three)]) == 0

    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines() == [
        "step-00000030  step       30  1970-01-04 00:00:00Z         1.5 MB  good  newest good",
        "epoch-00002    step       20  1970-01-03 00:00:00Z         1.5 MB  good",
        "epoch-00001    step       10  1970-01-02 00:00:00Z         1.5 MB  good",
    ]


def test_damage_is_listed(three: Path, capsys: Captured) -> None:
    """With what is wrong below it, and exit status 1; those of which nothing is known come last."""
    (three / "step-00000030" / TENSORS).write_bytes(bytes(1_499_999) + b"\x01")
    (three / "epoch-00001" / MANIFEST).unlink()

    assert main(["checkpoints", str(three)]) == 1

    assert capsys.readouterr().out.splitlines() == [
        "step-00000030  step       30  1970-01-04 00:00:00Z         1.5 MB  damaged",
        f"  {three}/step-00000030/tensors.pt is damaged: it does not match its checksum",
        "epoch-00002    step       20  1970-01-03 00:00:00Z         1.5 MB  good  newest good",
        "epoch-00001    damaged",
        f"  {three}/epoch-00001 is no checkpoint: it has no manifest, or one that is too large",
    ]


def test_checkpoints_as_json(three: Path, capsys: Captured) -> None:
    """The same as data; null where it is not known."""
    (three / "step-00000030" / STATE).unlink()
    (three / "epoch-00002" / MANIFEST).write_bytes(b"")

    assert main(["checkpoints", str(three), "--json"]) == 1

    found = json.loads(capsys.readouterr().out)
    newest, older, unknown = found["checkpoints"]
    assert found["newest_good"] == "epoch-00001"
    assert older == {
        "name": "epoch-00001",
        "good": True,
        "trouble": "",
        "iteration": 20,
        "step": 10,
        "epoch": None,
        "score": None,
        "written": 86400.0,
        "bytes": 1_500_002,
        "ranks": 1,
    }
    assert (newest["name"], newest["good"], newest["step"]) == ("step-00000030", False, 30)
    assert (unknown["name"], unknown["good"], unknown["step"]) == ("epoch-00002", False, None)
    assert "does not match its own checksum" in unknown["trouble"]


def _trained(folder: Path, epochs: int, *more: Any, **settings: Any) -> None:
    """The checkpoints of a training whose valid_loss falls and then rises."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    losses = iter([3.0, 0.25, 2.0] * epochs)
    work = Supervised(
        *(model, torch.optim.SGD(model.parameters(), lr=0.0)),
        lambda output, target: output.sum() * 0 + (1.0 if model.training else next(losses)),
        *([(torch.ones(2, 1), torch.ones(2, 1))] * 2, [(torch.ones(2, 1), torch.ones(2, 1))]),
    )
    run(start(work, epochs=epochs), [*more, checkpoint(folder, **settings)])


def test_each_has_its_epoch_and_score_and_the_best_is_marked(tmp_path: Path, capsys: Captured) -> None:
    """The one that `load_weights` and `fsm-train weights` mean with "best"."""
    _trained(tmp_path, 4, ema(0.5), monitor="valid_loss", keep=4)

    assert main(["checkpoints", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [re.sub(r"\d{4}-\d\d-\d\d .* MB ", "", line) for line in lines] == [
        "epoch-00004 step 8 epoch 4 valid_loss 3.000 (ema) good newest good",
        "epoch-00003 step 6 epoch 3 valid_loss 2.000 (ema) good",
        "epoch-00002 step 4 epoch 2 valid_loss 0.2500 (ema) good best",
        "epoch-00001 step 2 epoch 1 valid_loss 3.000 (ema) good",
    ]
    assert main(["checkpoints", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["best"], found["newest_good"]) == ("epoch-00002", "epoch-00004")
    assert [item["epoch"] for item in found["checkpoints"]] == [4, 3, 2, 1]
    assert found["checkpoints"][2]["score"] == {
        "monitor": "valid_loss",
        "mode": "min",
        "value": 0.25,
        "weights": "ema",
    }
    assert load_weights(tmp_path, nn.Linear(1, 1))["name"] == found["best"]
    assert main(["checkpoints", str(tmp_path / "epoch-00002"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] is None  # of one alone it would say nothing


def test_a_damaged_best_is_not_the_best(tmp_path: Path, capsys: Captured) -> None:
    """It keeps what is known of it, and the next best is marked."""
    _trained(tmp_path, 3, monitor="valid_loss", keep=3)
    (tmp_path / "epoch-00002" / TENSORS).write_bytes(b"")

    assert main(["checkpoints", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == "epoch-00003"
    assert [item["epoch"] for item in found["checkpoints"]] == [3, 2, 1]
    for path in tmp_path.glob("*/state.json"):
        path.write_bytes(b"{}")
    assert main(["checkpoints", str(tmp_path), "--json"]) == 1
    assert [item["epoch"] for item in json.loads(capsys.readouterr().out)["checkpoints"]] == [None] * 3


def test_without_one_metric_for_all_none_is_the_best(tmp_path: Path, capsys: Captured) -> None:
    """Of two metrics, or where none was measured: then `which="best"` is refused too."""
    _trained(tmp_path / "two", 2, monitor="valid_loss", keep=2)
    _trained(tmp_path / "two", 1, monitor="train_loss", keep=1, name="other")
    _trained(tmp_path / "none", 1, monitor="valid_loss", keep=1)
    unmeasured = tmp_path / "none" / "epoch-00001" / MANIFEST
    body = json.loads(unmeasured.read_bytes().partition(b"\n")[2])
    body["place"]["score"]["value"] = None
    text = json.dumps(body).encode()
    unmeasured.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    for folder in ("two", "none"):
        assert main(["checkpoints", str(tmp_path / folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["best"] is None
        with pytest.raises(CheckpointError):
            load_weights(tmp_path / folder, nn.Linear(1, 1))
    assert main(["checkpoints", str(tmp_path / "none")]) == 0
    assert "valid_loss not measured" in capsys.readouterr().out


def test_epoch_of_a_long_training_and_within_one(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the history is in files of its own; one whose state is too large to be one has none."""
    _trained(tmp_path, 300, every_epochs=300, every_steps=451)

    assert main(["checkpoints", str(tmp_path), "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(item["step"], item["epoch"]) for item in items] == [(600, 300), (451, 225)]
    monkeypatch.setattr(summary, "LARGEST_JSON", 10)
    assert main(["checkpoints", str(tmp_path), "--json"]) == 0
    assert [item["epoch"] for item in json.loads(capsys.readouterr().out)["checkpoints"]] == [None, None]


def test_where_nothing_is_good_there_is_nothing_to_go_on_from(three: Path, capsys: Captured) -> None:
    """All are listed as damaged, and none is called the newest."""
    for path in three.glob("*/state.json"):
        path.write_bytes(b"[]")

    assert main(["checkpoints", str(three), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["newest_good"] is None
    assert main(["checkpoints", str(three)]) == 1
    assert "newest" not in capsys.readouterr().out


def test_one_checkpoint_is_verified_by_its_own_name(three: Path, capsys: Captured) -> None:
    """Also when its manifest is what is damaged."""
    assert main(["checkpoints", str(three / "epoch-00001")]) == 0
    assert capsys.readouterr().out.startswith("epoch-00001 ")
    (three / "epoch-00001" / MANIFEST).write_bytes(b"")
    assert main(["checkpoints", str(three / "epoch-00001")]) == 1
    assert "does not match its own checksum" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda path: path.mkdir(), "there is no checkpoint in"),
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_text("{}"), "Not a directory"),
    ],
)
def test_what_cannot_be_read_is_said(made: object, sentence: str, tmp_path: Path, capsys: Captured) -> None:
    """On standard error, with exit status 2."""
    assert callable(made)
    made(tmp_path / "runs")

    assert main(["checkpoints", str(tmp_path / "runs")]) == 2

    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err


def test_names_cannot_move_the_cursor(tmp_path: Path, capsys: Captured) -> None:
    """What is not printable in a name is written out, also where it is named in a sentence."""
    path = _checkpoint(tmp_path / "runs" / "a\x1b[2J\nepoch", 1)
    (path / STATE).write_bytes(b"[]")

    assert main(["checkpoints", str(tmp_path / "runs")]) == 1

    shown = capsys.readouterr().out
    assert shown.count("a\\x1b[2J\\nepoch") == 2
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def test_verifying_takes_no_torch(three: Path) -> None:
    """On a machine that has none, or where its import would take longer than to verify."""
    code = "import sys; sys.modules['torch'] = None; from fsm_train.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "checkpoints", str(three)], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_may_not_be_read_is_damage(three: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a disk is shown with the file's name, and the other checkpoints are still verified."""
    opened = Path.open

    def fails(path: Path, mode: str = "r") -> object:
        if path == three / "step-00000030" / TENSORS:
            raise OSError(5, "Input/output error")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", fails)
    assert main(["checkpoints", str(three)]) == 1
    assert f"{three}/step-00000030/tensors.pt cannot be read: Input/output error" in capsys.readouterr().out


def test_a_manifest_that_may_not_be_read_is_damage(
    three: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a manifest."""
    read = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path == three / "epoch-00001" / MANIFEST:
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    assert main(["checkpoints", str(three)]) == 1
    assert "its manifest cannot be read (Input/output error)" in capsys.readouterr().out


def test_names_that_are_no_text_are_escaped_in_json(three: Path, capsys: Captured) -> None:
    """The bytes of a name need not be valid UTF-8."""
    odd = Path(os.fsdecode(os.fsencode(three) + b"/epoch-\xff\xfe"))
    _checkpoint(odd, 9)

    assert main(["checkpoints", str(three), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoints"][0]["name"] == found["newest_good"] == "epoch-\\udcff\\udcfe"
    (odd / STATE).unlink()
    assert main(["checkpoints", str(odd), "--json"]) == 1
    assert "epoch-\\udcff\\udcfe" in json.loads(capsys.readouterr().out)["checkpoints"][0]["trouble"]
    assert main(["checkpoints", str(three)]) == 1


@pytest.mark.parametrize(
    "value", [2**63, 2**64, 10**400, -1, 1.0, "1", None, True, [1]], ids=lambda value: f"{value!r:.9}"
)
@pytest.mark.parametrize("key", ["step", "iteration", "number", "format", "written", "size", "score"])
def test_a_manifest_with_a_number_that_none_counts_to_is_damaged(
    key: str, value: object, three: Path, capsys: Captured
) -> None:
    """Also where its checksum fits. The others are still listed."""
    manifest = three / "epoch-00001" / MANIFEST
    body = json.loads(manifest.read_bytes().partition(b"\n")[2])
    if key == "score":
        body["place"]["score"] = {"monitor": "valid_loss", "mode": "min", "weights": "model", "value": value}
    elif key == "size":
        body["files"][STATE][0] = value
    else:
        (body if key in body else body["place"])[key] = value
    text = json.dumps(body).encode()
    manifest.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    status = main(["checkpoints", str(three), "--json"])

    found = json.loads(capsys.readouterr().out)["checkpoints"]
    assert len(found) == 3
    assert status == (0 if all(item["good"] for item in found) else 1)
    if key not in ("written", "score"):
        assert (status, found[-1]["good"], found[-1]["step"]) == (1, False, None)
    assert main(["checkpoints", str(three)]) == status
