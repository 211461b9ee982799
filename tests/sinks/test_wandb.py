"""Offline runs of Weights & Biases, read back from their files; and of a stand-in that needs no wandb."""

from __future__ import annotations

import importlib.util
import json
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import attrs
import pytest

from fsm_train import CallbackError, Phase, Scripted, run, start
from fsm_train.cli import main
from fsm_train.sinks import wandb
from fsm_train.sinks.tracker import Tracker

from .stand_ins import FakeRun, fake_wandb
from .tracked import EXPORTED, SEEN, breaks, in_pieces, suspends, whole

REAL = ["real"] if importlib.util.find_spec("wandb") else []


@attrs.frozen
class Saved:
    """What is written of a run.

    Attributes:
        id, name: of the run.
        rows: what was logged at once, by name.
        config, summary: by name.
        axes: by the metrics, the one that is their axis.
        preempting: whether it was said that it is suspended.
        exit_code: of the run.
    """

    id: str
    name: str
    rows: list[dict[str, Any]]
    config: dict[str, Any]
    summary: dict[str, Any]
    axes: dict[str, str | None]
    preempting: bool
    exit_code: int | None

    def metric(self, name: str) -> list[tuple[int, str]]:
        """Steps and values, as text so that NaN equals itself."""
        return [(row["step"], repr(float(row[name]))) for row in self.rows if name in row]


@attrs.frozen
class Offline:
    """Where the runs of a test go.

    Attributes:
        folder: of them.
        saved: reads all that were written, in their order.
        seconds_apart: which runs of one id are to be: wandb names their folders by the second.
    """

    folder: Path
    saved: Callable[[], list[Saved]]
    seconds_apart: float = 0.0

    def sink(self, **more: Any) -> Tracker:
        return wandb("digits", mode="offline", dir=str(self.folder), **more)


@pytest.fixture(params=["stand-in", *REAL])
def offline(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offline]:
    """Nothing outside of this machine is reached."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    if request.param == "real":
        yield Offline(tmp_path, lambda: _written_in(tmp_path), 1.1)
        return
    with fake_wandb() as (module, runs):
        monkeypatch.setitem(sys.modules, "wandb", module)
        yield Offline(tmp_path, lambda: [_saved_of(run) for run in runs])


def _written_in(folder: Path) -> list[Saved]:
    """The runs in a folder. The process of wandb writes the end of a file a moment after the run was finished."""
    deadline = time.monotonic() + 180
    while True:
        paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=_made)
        saved = [_saved_in(path) for path in paths]
        if all(run is not None and run.exit_code is not None for run in saved) or time.monotonic() > deadline:
            return [run for run in saved if run is not None]
        time.sleep(0.05)


def _made(path: Path) -> int:
    return path.parent.stat().st_ctime_ns


def _saved_of(run: FakeRun) -> Saved:
    summary = {**{name: value for row in run.rows for name, value in row.items()}, **run.summary}
    return Saved(run.id, run.init["name"] or "", run.rows, run.config, summary, run.axes, run.preempting, run.exit_code)


def _saved_in(path: Path) -> Saved | None:
    """What is in the file of an offline run; None if nothing is yet."""
    rows, config, summary, axes = [], {}, {}, {}
    preempting, exit_code, run = False, None, None
    for record in _records(path.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
            case "history":
                items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append({name: value for name, value in items.items() if not name.startswith("_")})
            case "config":
                config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            case "summary":
                summary |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.summary.update}
            case "metric":
                axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric or None
            case "preempting":
                preempting = True
            case "exit":
                exit_code = record.exit.exit_code
    return run and Saved(run.run_id, run.display_name, rows, config, summary, axes, preempting, exit_code)


def _records(raw: bytes) -> Iterator[Any]:
    """The records of a file: wandb writes blocks of 32 KiB, as LevelDB does, with a checksum for each part."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert raw[:4] in (b":W&B", b"")
    at, whole_record = 7, b""
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        checksum, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        part = raw[at + 7 : at + 7 + size]
        if len(part) < size:
            return  # the rest is not written yet
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum
        whole_record += part
        at += 7 + size
        if kind in (1, 4):  # a whole one, or the last part of one
            yield Record.FromString(whole_record)
            whole_record = b""


def test_rows_are_the_training(offline: Offline) -> None:
    """Over the optimizer steps, to the last bit: metrics, rates, the epoch, and facts of batches; NaN and inf too."""
    final = whole(offline.sink(name="first", **SEEN))
    (saved,) = offline.saved()

    assert saved.metric("train_loss") == [(4 * n, repr(m["train_loss"])) for n, m in enumerate(final.history, 1)]
    assert saved.metric("loss") == [(n, repr(1 / n)) for n in range(2, 13, 2)]
    assert dict(saved.metric("valid_loss"))[4] == repr(nan)
    assert dict(saved.metric("valid_loss"))[9] == repr(inf)
    assert [step for step, _ in saved.metric("lr/1")] == [4, 8, 12]
    assert saved.axes == {"step": None, "*": "step"}
    assert (saved.name, saved.rows[-1]["epoch"]) == ("first", 3)
    assert (saved.exit_code, saved.preempting, saved.summary["ended"]) == (0, False, "all 3 epochs done")


def test_settings_are_the_config(offline: Offline) -> None:
    """The plan, those of callbacks and of the user."""
    whole(offline.sink(config={"width": 64}), epochs=1)
    (saved,) = offline.saved()

    assert (saved.config["plan.epochs"], saved.config["width"], saved.config["hyper.lr/1"]) == (1, 64, 0.2)
    assert saved.config["early_stopping.monitor"] == "valid_loss"


@pytest.mark.parametrize("by_id", [True, False])
def test_a_resumed_training_goes_on_in_its_run(offline: Offline, by_id: bool) -> None:
    """By the id, or as the same object; each number is there, and those after the place once more."""
    both = offline.sink(**SEEN)

    def again() -> Tracker:
        time.sleep(offline.seconds_apart)
        return offline.sink(id="first", **SEEN) if by_id else both

    in_pieces(again)
    pieces = offline.saved()
    whole(offline.sink(**SEEN))
    expected = offline.saved()[-1]

    assert len({saved.id for saved in pieces}) == 1
    assert (pieces[0].id == "first") == by_id
    assert [saved.exit_code for saved in pieces] == [130, 130, 0]
    for name in ("train_loss", "valid_loss", "loss"):
        assert {pair for saved in pieces for pair in saved.metric(name)} == {*expected.metric(name)}


def test_a_new_training_is_a_new_run(offline: Offline) -> None:
    """Of the same object too."""
    twice = offline.sink()
    for _ in range(2):
        whole(twice, epochs=1)

    assert len({saved.id for saved in offline.saved()}) == 2


def test_a_training_that_does_not_end_well_says_so(offline: Offline) -> None:
    """An exit code, and the reason in the summary."""
    with pytest.raises(CallbackError):
        whole(offline.sink(), further=[breaks])
    assert whole(offline.sink(), further=[suspends(5)]).phase is Phase.SUSPENDED
    cut_off = offline.sink()
    cut_off.open(start(Scripted(), epochs=1), [])
    cut_off.close()
    cut_off.close()
    failed, suspended, cut = offline.saved()

    assert (failed.exit_code, suspended.exit_code, cut.exit_code) == (1, 130, 130)
    assert (failed.preempting, suspended.preempting, cut.preempting) == (False, True, False)
    assert failed.summary["ended"].startswith("failed in epoch 2/3: CallbackError: callback 'breaks'")
    assert suspended.summary["ended"] == "suspended in epoch 2/3: suspends: time is up"
    assert cut.summary["ended"] == "cut off before its end"


def test_an_exported_log_is_the_run(offline: Offline, tmp_path: Path) -> None:
    """The numbers, config and end are those that were written live, in an offline run that wandb sync sends."""
    log = tmp_path / "run.jsonl"
    whole(offline.sink(**SEEN), log=log)

    assert main(["export", str(log), "wandb", str(offline.folder), "--run", "later", *EXPORTED]) == 0
    live, exported = offline.saved()
    assert [{**row, "valid_loss": repr(row.get("valid_loss"))} for row in exported.rows] == [
        {**row, "valid_loss": repr(row.get("valid_loss"))} for row in live.rows
    ]
    assert (exported.config, exported.exit_code) == (live.config, 0)
    assert (exported.summary["ended"], exported.name) == (live.summary["ended"], "later")


def test_what_wandb_raises_switches_it_off(offline: Offline) -> None:
    """With a note; the training continues."""
    with pytest.warns(RuntimeWarning, match="the sink WandbRun raised"):
        final = run(start(Scripted(), epochs=2), sinks=[offline.sink(no_such_argument=1)])

    assert (final.epoch, len(final.notes)) == (2, 1)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and with what to install."""
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(ModuleNotFoundError, match=r"wandb\(…\) needs wandb: pip install 'fsm-train\[wandb\]'"):
        wandb("digits")
