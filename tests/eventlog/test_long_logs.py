"""Logs of many lines, epochs and calls of run: in memory that does not grow, and in time that grows with the lines."""

from __future__ import annotations

import gzip
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from fsm_train import LogError, Scripted, diagnose, diff, extend, read_log, replay, run, start
from fsm_train.cli import main
from fsm_train.eventlog import epochs as epochs_on_disk
from fsm_train.eventlog.entries import MAX_LINE_BYTES
from fsm_train.eventlog.epochs import MAX_METRICS, Epoch, Epochs
from fsm_train.eventlog.lines import digest
from fsm_train.eventlog.render import summarize
from fsm_train.view.packing import packed_run

from .log_files import forged, lines_of, logged

Captured = pytest.CaptureFixture[str]


def _log_of(path: Path, epochs: int) -> Path:
    """A log of three lines an epoch, written without training so long."""
    run(start(Scripted(batches=1, loss=1.0, valid_loss=0.5), epochs=3), log=path)
    header, setup, begin, valid, end, *_, teardown, done = lines_of(path)
    header["start"]["plan"]["epochs"] = epochs
    lines = [header, setup]
    for epoch in range(epochs):
        before = {"epoch": epoch, "iteration": epoch, "step": epoch, "samples": 32 * epoch}
        after = {"iteration": epoch + 1, "step": epoch + 1, "samples": 32 * epoch + 32, "validated_at": epoch + 1}
        lines += [{**begin, **before}, {**valid, **after, "epoch": epoch}, {**end, **after, "epoch": epoch + 1}]
    last = {"epoch": epochs, "iteration": epochs, "step": epochs}
    lines += [{**teardown, **last}, {**done, **last}]
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    forged(path, lambda _: None)
    return path


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most bytes that are in use in this block; known at its end."""
    found: list[int] = []
    tracemalloc.start()
    yield found
    found.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()


@pytest.mark.parametrize("command", [["show"], ["show", "--json"], ["diff"]])
def test_a_command_takes_no_more_memory_for_more_epochs(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are read again from the disk, and written one by one."""
    monkeypatch.setattr("builtins.print", lambda *_, **__: None)
    monkeypatch.setattr(epochs_on_disk, "IN_MEMORY", 4_000)
    peaks = []
    for epochs in (600, 1_200):
        log = str(_log_of(tmp_path / f"{epochs}.jsonl", epochs))
        with _peak() as peak:
            assert main([*command, log, *([log] if command == ["diff"] else [])]) == 0
        peaks += peak

    assert peaks[1] < 1.1 * peaks[0]


def test_epochs_come_back_as_they_were(tmp_path: Path) -> None:
    """Each as often as one likes: numbers to the last bit, rates of one and of several groups."""
    epochs = Epochs()
    given = [
        Epoch(1, 4, 0.1, {"train_loss": float("inf"), "valid_accuracy": 1}),
        Epoch(2, 8, (0.1, 0.2), {"valid_loss": 0.1 + 0.2, "valid_accuracy": 2**70}),
        Epoch(3, 12, None, {}),
    ]
    for epoch in given:
        epochs.append(epoch)

    assert list(epochs) == list(epochs) == given
    assert len(epochs) == 3
    assert epochs.names == ["train_loss", "valid_loss", "valid_accuracy"]
    assert epochs.sampled(60)["valid_accuracy"] == [1, 2**70]


def test_a_long_curve_is_thinned_out() -> None:
    """At equal distances, and its last value is always there."""
    epochs = Epochs()
    for number in range(1000):
        epochs.append(Epoch(number + 1, number, 0.1, {"train_loss": float(number)}))

    assert epochs.sampled(60)["train_loss"] == [*map(float, range(0, 1000, 17)), 999.0]


def test_a_page_has_a_limited_number_of_columns(tmp_path: Path, capsys: Captured) -> None:
    """Or a log with other metrics in each epoch would be a page as large as its square."""
    path = _log_of(tmp_path / "run.jsonl", 400)

    def rename(lines: list[dict[str, Any]]) -> None:
        for number, line in enumerate(lines[1:]):
            line["metrics"] = {f"valid_{number}": 0.5}

    forged(path, rename)

    assert main(["show", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()[3].split()) == MAX_METRICS + 3


def test_time_grows_with_the_number_of_calls_of_run(tmp_path: Path) -> None:
    """And not with its square, although each line belongs to one of them."""
    logs = {}
    for calls in (250, 1000):
        path, work = tmp_path / f"{calls}.jsonl", Scripted(batches=1)
        state = run(start(work, epochs=1), log=path)
        first, *rest = lines_of(path)
        run(extend(state, epochs=1), log=path)
        again = lines_of(path)[len(rest) + 1 :]
        lines: list[dict[str, Any]] = [first, *rest]
        for _ in range(calls):
            lines += [{**again[0], "continues": len(lines) - 1}, *(dict(line) for line in again[1:])]
        path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        forged(path, lambda _: None)
        logs[path] = len(lines)
    seconds = dict.fromkeys(logs, math.inf)  # the least, by turns: others use the machine too, now and then
    for path, count in [*logs.items()] * 4:
        begin = time.process_time()
        assert sum(1 for _ in read_log(path)) == count
        seconds[path] = min(seconds[path], time.process_time() - begin)

    few, many = seconds.values()
    assert many < 8 * few


def test_the_end_of_a_line_that_is_too_long_is_not_searched(tmp_path: Path) -> None:
    """Neither in a plain file nor in a compressed one, which may be a thousand times as large as it looks."""
    plain, packed = tmp_path / "run.jsonl", tmp_path / "run.jsonl.gz"
    logged(plain, [], epochs=1)
    plain.write_bytes(plain.read_bytes() + bytes(10 * MAX_LINE_BYTES))
    packed.write_bytes(gzip.compress(plain.read_bytes(), 1))

    for path in (plain, packed):
        with _peak() as peak, pytest.raises(LogError, match="line 8: it is longer than 16 MiB"):
            list(read_log(path))
        assert peak[0] < 6 * MAX_LINE_BYTES


def with_hidden_header(path: Path) -> None:
    """The event of the header is written with an escape, so that a search for the word does not find it."""
    lines, before = path.read_bytes().splitlines(), ""
    for number, raw in enumerate(lines):
        body = raw.replace(b',"digest":"' + orjson.loads(raw)["digest"].encode() + b'"', b"")
        body = body.replace(b'"header"', b'"\\u0068eader"')
        before = digest(before, body)
        lines[number] = body[:-1] + b',"digest":"' + before.encode() + b'"}'
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        (summarize, "no call of run in it counts"),
        (packed_run, "no call of run in it counts"),
        (diagnose, "no call of run in it counts"),
        (replay, "a recorded training begins with a header, and there is none"),
    ],
)
def test_a_log_of_which_nothing_counts_is_refused(
    read: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    """In a sentence."""
    logged(tmp_path / "run.jsonl", [], epochs=1)
    with_hidden_header(tmp_path / "run.jsonl")

    with pytest.raises(LogError, match=sentence):
        read(tmp_path / "run.jsonl")
    assert diff(tmp_path / "run.jsonl", tmp_path / "run.jsonl") is None
