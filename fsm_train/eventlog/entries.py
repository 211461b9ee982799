"""The lines of a log as a stream, in bounded memory. Nothing in a log is run.

Rules of this file: every fault is a `LogError` with the number of the line. Only the last line may be cut short,
as a crash does it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from .checker import WHICH_LOG, LineChecker, parse_line
from .entry import Entry
from .errors import LogError
from .lines import HEADER, HISTORY

MAX_LINE_BYTES = 16 << 20
"""The longest line that is read: far longer than a real one, and short enough to be held in memory."""


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of the file with their numbers, from 1; the last may have no newline.

    Raises:
        LogError: a line is too long, or the file cannot be uncompressed.
        OSError: the file cannot be read.
    """
    number = 0
    try:
        with _open(path) as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise LogError(f"it is longer than {MAX_LINE_BYTES >> 20} MiB", path=str(path), line=number)
                yield number, raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise LogError(f"it cannot be uncompressed: {error}", path=str(path), line=number + 1) from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", io.BufferedReader(gzip.open(path), 1 << 16))
    return path.open("rb", buffering=1 << 16)


def tail_of(path: Path) -> tuple[int, int, bool]:
    """What is at the end of the file.

    Returns:
        The number of bytes in whole lines, the number of bytes after them in a line that was cut short, and
        whether the last whole line has no newline.
    """
    size, end = 0, b""
    for _, raw in raw_lines(path):
        if raw.endswith(b"\n"):
            size += len(raw)
        else:
            end = raw
    if end and parse_line(end) is not None:
        return size + len(end), 0, True
    return size, len(end), False


def entries(path: Path, checker: LineChecker | None = None) -> Iterator[Entry]:
    """All lines of the log; those that are superseded have `counts` False. A header has the lines of its history in it.

    Another program's lines in the same file are skipped. The sequence numbers show that no line of the log
    is missing.

    Args:
        path: the path of the log.
        checker: checks the lines; its `last` is the last of them.

    Raises:
        LogError: a line is damaged, or there is no log in the file.
        OSError: the file cannot be read.
    """
    if path.is_fifo() or path.is_char_device():
        raise LogError("a log is read twice, so it must be a file: write this to one first", path=str(path))
    return _whole_headers(_checked(path, checker or LineChecker(path)))


def _checked(path: Path, checker: LineChecker) -> Iterator[Entry]:
    parts = _history(path)
    first, last = math.inf, math.inf  # of the part under way
    coming = parts[-1][0] if parts else math.inf  # the number of the line with which the next one begins
    check = checker.check
    for number, raw in raw_lines(path):
        entry = check(number, raw)
        if entry is not None:
            while coming <= number:
                first, last = parts.pop()
                coming = parts[-1][0] if parts else math.inf
            entry.counts = first <= number and entry.seq <= last
            yield entry
    if checker.last is None:
        raise LogError(f"there is no log in this file{WHICH_LOG}", path=str(path))


def _whole_headers(lines: Iterator[Entry]) -> Iterator[Entry]:
    """The lines, each header with its whole history. One whose history a crash cut short keeps its key `further`."""
    header: Entry | None = None  # waits for the rest of its history
    for entry in lines:
        if header is None and entry.event != HEADER:  # almost all
            yield entry
            continue
        if entry.event == HISTORY:
            assert header is not None
            start = header.body["start"]
            start["history"] += entry.body["history"]
            start["further"] -= len(entry.body["history"])
            if not start["further"]:
                del start["further"]
                yield header
                header = None
            continue
        if header is not None:
            yield header
            header = None
        if entry.event == HEADER and entry.body["start"].get("further"):
            header = entry
        else:
            yield entry
    if header is not None:
        yield header


def _history(path: Path) -> list[tuple[int, float]]:
    """The parts of the history that counts, the last one first, and no part where there is no header.

    Each is the line number of a header, and the last `seq` from there to the next part that counts.
    """
    headers: list[tuple[int, int, int | None]] = []
    for number, raw in _lines_containing(b'"header"', path):
        if (line := parse_line(raw)) and line.get("event") == HEADER and type(line.get("seq")) is int:
            headers.append((number, line["seq"], line.get("continues")))
    parts: list[tuple[int, float]] = []
    last = math.inf
    for number, seq, continues in reversed(headers):
        if seq > last:
            continue
        parts.append((number, last))
        if type(continues) is not int:
            break
        last = continues
    return parts


def _lines_containing(what: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that contain `what`, with their numbers. Blocks of other lines are counted without being split.

    They end where the file cannot be decompressed, and at a line that is too long; `raw_lines` raises the error.
    """
    number = 1
    with _open(path) as file, contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):
        while block := file.read(1 << 16):
            block += (end := file.readline(MAX_LINE_BYTES + 1))
            if what in block:
                for i, raw in enumerate(block.split(b"\n")):
                    if what in raw:
                        yield number + i, raw
            if len(end) > MAX_LINE_BYTES:
                return
            number += block.count(b"\n")
