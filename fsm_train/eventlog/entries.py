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
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import IO, Any, cast

import orjson

from ..core.phase import Phase
from ..core.values import EMPTY
from ..encoding import Json
from .errors import LogError
from .forms import (
    MAX_DEPTH,
    MAX_EVENTS,
    fault_in_header,
    fault_in_history,
    fault_in_line,
    fault_in_plain_line,
    is_plain,
    is_too_deep,
)
from .lines import HEADER, HISTORY, KEYS, NEXT_EVENTS, OWN_KEYS, PLACES, canonical, digest
from .upcasts import upcast

MAX_LINE_BYTES = 16 << 20
"""The longest line that is read: far longer than a real one, and short enough to be held in memory."""

PHASES = frozenset(phase.value for phase in Phase)
EVENTS = PHASES | {HEADER, HISTORY}

_SETUP = Phase.SETUP.value

_AFTER_HEADER = frozenset({HEADER, HISTORY, _SETUP, Phase.TEARDOWN.value, Phase.FAILED.value})

FOLLOWING: Mapping[str, Set[str]] = {
    HEADER: _AFTER_HEADER,
    HISTORY: _AFTER_HEADER,
    **{phase.value: NEXT_EVENTS[phase] | {HEADER} for phase in Phase},
}
"""By event, the events that the next line can have; always a header too, since a process can be killed anywhere."""


class Entry:
    """A line of a log, split into its parts, each of the form that a log has.

    Attributes:
        number: the number of the line in the file, from 1.
        seq: the number of the line in the log, from 0.
        event: the phase, or "header".
        digest: the digest of this line and all before it.
        body: the other keys of the log, without facts and course: what a replay makes again.
        facts: the measured values, as JSON.
        course: what happened since the line before, as JSON.
        bound: the keys that were bound to the logger.
        counts: whether the line belongs to the history that counts; False if it is superseded.
    """

    __slots__ = ("body", "bound", "counts", "course", "digest", "event", "facts", "number", "seq")

    def __init__(self, number: int, line: dict[str, Any], *, plain: bool = False) -> None:
        self.number = number
        self.seq: int = line.pop("seq")
        self.event: str = line.pop("event")
        self.digest: str = line.pop("digest")
        self.bound: Mapping[str, Any] = EMPTY
        self.facts: Mapping[str, Json]
        self.course: list[list[Any]]
        if plain:
            self.facts = line.pop("facts")
            self.course = line.pop("course", None) or []
        else:
            own = OWN_KEYS.get(self.event, KEYS)
            if not line.keys() <= own:
                self.bound = {name: line.pop(name) for name in line.keys() - own}
            self.facts = line.pop("facts", {}) if own is KEYS else {}
            self.course = line.pop("course", []) if own is KEYS else []
        self.body = line
        self.counts = True


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
    if end and _parse(end) is not None:
        return size + len(end), 0, True
    return size, len(end), False


def _parse(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in the line; None if there is none."""
    try:
        value = orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError):
        return None
    return value if type(value) is dict else None


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
    first, last = math.inf, math.inf
    for number, raw in raw_lines(path):
        entry = checker.check(number, raw)
        if entry is not None:
            while parts and parts[-1][0] <= number:
                first, last = parts.pop()
            entry.counts = first <= number and entry.seq <= last
            yield entry
    if checker.last is None:
        raise LogError(f"there is no log in this file{_NO_LOG}", path=str(path))


def _whole_headers(lines: Iterator[Entry]) -> Iterator[Entry]:
    """The lines, each header with its whole history. One whose history a crash cut short keeps its key `further`."""
    header: Entry | None = None  # waits for the rest of its history
    for entry in lines:
        if header is None and entry.event != HEADER:
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
        if (line := _parse(raw)) and line.get("event") == HEADER and type(line.get("seq")) is int:
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


class LineChecker:
    """Checks the lines of a log one after the other: form, digest, sequence number, and the move from the line before.

    Attributes:
        path: the path of the log, for errors.
        last: the last line that was checked; None at the beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.last: Entry | None = None
        self._resume_at = ""  # where this call of `run` continues
        self._counts = 0, 0  # iteration and valid_batch of the line before, or of the start of this call
        self._further = 0  # the epochs of the history of this call that are in lines to come

    def check(self, number: int, raw: bytes) -> Entry | None:
        """The line; None if another program wrote it, or if it is cut short at the end of the file.

        Raises:
            LogError: the line is damaged, or it cannot follow the line before.
        """
        line = _parse(raw)
        if line is None:
            if not raw.endswith(b"\n") and self.last is not None:
                return None
            raise self._error(number, _not_json(raw, number))
        if is_plain(line) and line["event"] in PHASES and not is_too_deep(raw, line):
            entry = Entry(number, line, plain=True)
            self._check_place(entry)
            self._check_digest(entry, raw)
            if fault := fault_in_plain_line(entry.body, entry.facts, entry.course):
                raise self._error(number, fault)
            self._check_length(entry)
            self.last = entry
            return entry
        return self._check_any(number, raw, line)

    def _check_any(self, number: int, raw: bytes, line: dict[str, Any]) -> Entry | None:
        """As `check`, of a header, of a line that is unusual, and of one that is damaged or another program's."""
        seq, digits, event = line.get("seq"), line.get("digest"), line.get("event")
        if type(seq) is not int or type(digits) is not str or type(event) is not str or event not in EVENTS:
            if "seq" not in line and "digest" not in line:
                return None
            raise self._error(number, "it has no sequence number, digest or phase as a line of a log has")
        if is_too_deep(raw, line):
            raise self._error(number, f"it is nested more than {MAX_DEPTH} deep")
        entry = Entry(number, line)
        self._check_place(entry)
        self._check_digest(entry, raw)
        if event == HEADER:
            entry.body = upcast(entry.body, self.path, number)
            fault = fault_in_header(entry.body, entry.seq)
        elif event == HISTORY:
            fault = fault_in_history(entry.body, self._further)
        else:
            fault = fault_in_line(entry.body, entry.facts, entry.course)
        if fault:
            raise self._error(number, fault)
        if event == HEADER:
            self._resume_at = entry.body["start"].get("resume_at", "")
            self._further = entry.body["start"].get("further", 0)
        if entry.event == HISTORY:
            self._further -= len(entry.body["history"])
        else:
            self._check_length(entry)
        self.last = entry
        return entry

    def _check_place(self, entry: Entry) -> None:
        last = self.last
        if entry.event == HEADER:
            if entry.seq == 0:
                return
            if last is None:
                raise self._error(entry.number, f"the log begins with line {entry.seq}: what comes before is missing")
        if last is None:
            raise self._error(entry.number, "the log has no header: its beginning is missing")
        if entry.seq != last.seq + 1:
            what = "a repeat" if entry.seq <= last.seq else "a gap"
            raise self._error(entry.number, f"{what} in the log: line {entry.seq} comes after line {last.seq}")
        if entry.event not in FOLLOWING[last.event] and not (last.event == _SETUP and self._resumes_at(entry.event)):
            raise self._error(entry.number, f"the machine cannot go from {last.event} to {entry.event}")
        if (self._further or entry.event == HISTORY) and entry.event != HEADER:
            self._check_further(entry)

    def _check_further(self, entry: Entry) -> None:
        """Refuse a further line of a history that is complete, and any other line before it is."""
        if entry.event != HISTORY:
            what = f"the header before this line has {self._further} more epochs of history"
            raise self._error(entry.number, what)
        if not self._further:
            raise self._error(entry.number, "the header before this line has no more history than it says")

    def _resumes_at(self, event: str) -> bool:
        """Whether the place where the training continues leads to such a line."""
        return self._resume_at in PLACES and event in NEXT_EVENTS[PLACES[self._resume_at]]

    def _check_digest(self, entry: Entry, raw: bytes) -> None:
        before = "" if self.last is None else self.last.digest
        cut = raw.rfind(_DIGEST)
        body = raw[:cut] + raw[cut + _DIGEST_LENGTH + len(entry.digest) :].rstrip(b"\r\n")
        if entry.digest == digest(before, body):
            return
        # Another logger wrote the line, with bound keys or another order; its stream may have begun with other logs.
        own = OWN_KEYS.get(entry.event, KEYS)
        body = canonical({name: value for name, value in orjson.loads(raw).items() if name in own and name != "digest"})
        first = entry.event == HEADER and entry.seq == 0
        if entry.digest == digest(before, body) or (first and entry.digest == digest("", body)):
            return
        raise self._error(entry.number, "its digest does not fit: this line, or the one before it, was changed")

    def _check_length(self, entry: Entry) -> None:
        """Refuse a course of more events than the counters can tell of, or than a replay can take in its time."""
        (iteration, valid_batch), body = self._counts, entry.body
        if entry.event == HEADER:
            body = body["start"]
        self._counts = now = body["iteration"], body["valid_batch"]
        if not entry.course:
            return
        if len(entry.course) == 1 and entry.course[0][1] == 1:
            return
        counts = [count for _, count in entry.course]
        # One batch may be fetched and not finished, one be before the epoch's end, one a validation's.
        most = max(0, now[0] - iteration) + max(valid_batch, now[1]) + 3
        if max(counts) > most:
            raise self._error(entry.number, f"its course has more events than the {most} that its counters allow")
        if sum(counts) > MAX_EVENTS:
            raise self._error(entry.number, f"its course has more than {MAX_EVENTS} events, and a replay takes each")

    def _error(self, number: int, what: str) -> LogError:
        return LogError(what, path=self.path, line=number)


_DIGEST = b',"digest":"'
_NO_LOG = ": give the file that run(…, log=…) wrote"
_DIGEST_LENGTH = len(b',"digest":""')


def _not_json(raw: bytes, number: int) -> str:
    """Why the line is no JSON object. The first one of a log may be a header that a crash cut short."""
    of_log = number > 1 or raw.startswith(b'{"seq":')
    try:
        orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError) as error:
        more = ", and the log does not end here" if raw.endswith(b"\n") else ""
        return f"it is no JSON ({error}){more if of_log else _NO_LOG}"
    return f"it is no JSON object{'' if of_log else _NO_LOG}"
