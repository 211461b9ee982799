"""A log that comes through a pipe: each command shows of it what it shows of the file."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fsm_train.cli import main
from fsm_train.eventlog.entries import MAX_LINE_BYTES

Captured = pytest.CaptureFixture[str]


def pipe(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these bytes be what standard input has."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is written on the way is seen."""
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["show", "LOG"],
        ["show", "--json", "LOG"],
        ["replay", "LOG"],
        ["what-if", "LOG", "early_stopping.patience=1..2"],
        ["diff", "LOG", "OTHER"],
        ["diff", "OTHER", "LOG"],
        ["tail", "LOG"],
        ["tail", "--all", "--json", "LOG"],
    ],
    ids=" ".join,
)
def test_a_pipe_is_read_as_the_file_is(
    command: list[str], log: str, other: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """The same output and the same status; and no file is left over."""
    shown = []
    for path in (log, "-"):
        pipe(Path(log).read_bytes(), monkeypatch)
        status = main([{"LOG": path, "OTHER": other}.get(word, word) for word in command])
        shown.append((status, *capsys.readouterr()))

    assert shown[0] == shown[1]
    assert shown[0][1]
    assert [*temporary.iterdir()] == []


def test_a_compressed_log_is_recognized(log: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no name that could say so."""
    pipe(gzip.compress(Path(log).read_bytes()), monkeypatch)

    assert main(["replay", "-"]) == 0
    assert capsys.readouterr().out.startswith("agrees: 75 lines")


def test_one_of_several_logs_may_be_a_pipe(
    log: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside those that are files."""
    pipe(Path(log).read_bytes(), monkeypatch)
    picture = tmp_path / "curves.svg"

    assert main(["plot", other, "-", "-o", str(picture)]) == 0
    assert "<!-- standard input: train_loss -->" in picture.read_text()
    assert "<!-- other.jsonl: train_loss -->" in picture.read_text()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"nonsense\n", "standard input, line 1: it is no JSON"),
        (b"", "standard input: "),
        (b"\x1f\x8bnonsense", "standard input, line 1: it cannot be uncompressed"),
    ],
)
def test_what_is_no_log_is_said_of_standard_input(
    data: bytes, sentence: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of a file that nobody has named."""
    pipe(data, monkeypatch)

    assert main(["show", "-"]) == 2
    found = capsys.readouterr().err
    assert (found.startswith("fsm-train: "), "fsm-train-" in found) == (True, False)
    assert sentence in found


def test_a_reader_that_has_seen_enough_is_no_error(
    log: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """As with `cat run.jsonl | fsm-train show - | head`: the status is that of `fsm-train show run.jsonl | head`."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def fileno(self) -> int:
            return descriptor

    descriptor = os.dup(1)
    pipe(Path(log).read_bytes(), monkeypatch)
    monkeypatch.setattr(sys, "stdout", Full())
    try:
        assert main(["show", "-"]) == 0
    finally:
        os.close(descriptor)
    assert capsys.readouterr().err == ""
    assert [*temporary.iterdir()] == []


def test_a_pipe_is_read_once(capsys: Captured) -> None:
    """Two logs cannot come through it."""
    assert main(["diff", "-", "-"]) == 2
    assert capsys.readouterr().err == "fsm-train: two logs are -, and standard input can be read once\n"


@pytest.mark.parametrize("command", ["show", "tail"])
def test_a_closed_standard_input_is_a_sentence(command: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job that has none."""
    monkeypatch.setattr(sys, "stdin", None)

    assert main([command, "-"]) == 2
    assert capsys.readouterr().err == "fsm-train: - is standard input, which is closed\n"


def test_a_tail_shows_lines_as_they_come(log: str) -> None:
    """Before the pipe is closed, and it ends when that is, also where the training has not ended."""
    lines = Path(log).read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if b'"event":"epoch_end"' in line]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "fsm_train", "tail", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as shown:
        assert shown.stdin
        assert shown.stdout
        shown.stdin.write(b"".join(lines[: ends[0] + 1]))
        shown.stdin.flush()
        assert shown.stdout.readline().startswith(b"epoch_end     epoch 1")
        shown.stdin.write(b"".join(lines[ends[0] + 1 : ends[1] + 1]) + b'{"torn')
        shown.stdin.close()
        assert shown.stdout.read().startswith(b"epoch_end     epoch 2")
        assert shown.wait() == 0


def test_a_tail_refuses_a_line_without_an_end(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it takes the memory."""
    pipe(b"x" * (MAX_LINE_BYTES + 1), monkeypatch)

    assert main(["tail", "-"]) == 2
    assert "standard input, line 1: it is longer than 16 MiB" in capsys.readouterr().err


def test_page_of_standard_input_needs_a_place(
    log: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the pipe there is no folder; with -o there is one."""
    pipe(Path(log).read_bytes(), monkeypatch)
    assert main(["view", "-"]) == 2
    assert "say where with -o" in capsys.readouterr().err

    pipe(Path(log).read_bytes(), monkeypatch)
    assert main(["view", "-", "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
