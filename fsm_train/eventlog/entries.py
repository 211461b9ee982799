"""The lines of a log, as a stream: in bounded memory, and never running anything that stands in them.

Rules of this file: whatever is wrong is a `LogError` with the number of the line. Only the very end
may be torn, since that is what a crash leaves behind.
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
from ..encoding import Json
from .errors import LogError
from .lines import HEADER, HEADER_KEYS, KEYS, ONWARD, PLACES, canonical, digest, is_course, wrong_in_header
from .upcasts import upcast

LONGEST = 16 << 20
"""So many bytes a line may have: far more than any real one, and little enough to be held."""

EVENTS = frozenset({HEADER, *(phase.value for phase in Phase)})

_SETUP = Phase.SETUP.value

AHEAD: Mapping[str, Set[str]] = {
    HEADER: frozenset({HEADER, _SETUP, Phase.TEARDOWN.value}),
    **{phase.value: ONWARD[phase] | {HEADER} for phase in Phase},
}
"""After each event, those that the next line can have: a header at any time, since a process may be killed."""


class Entry:
    """A line as it was read: what is in it is checked only as far as its form goes.

    Attributes:
        number: of the line in the file, from 1.
        seq: its number in the log, from 0.
        event: the phase, or "header".
        body: what the machine made of it. The rest is what the world said:
        facts, course: as they stand in the line.
        bound: keys that are not of the log.
        counts: whether it is part of the history that counts.
    """

    __slots__ = ("body", "bound", "counts", "course", "digest", "event", "facts", "number", "seq")

    def __init__(self, number: int, found: dict[str, Any]) -> None:
        self.number = number
        self.seq: int = found.pop("seq")
        self.event: str = found.pop("event")
        self.digest: str = found.pop("digest")
        own = HEADER_KEYS if self.event == HEADER else KEYS
        self.bound: Mapping[str, Any] = {}
        if not found.keys() <= own:
            self.bound = {name: found.pop(name) for name in found.keys() - own}
        self.facts: Mapping[str, Json] = {}
        self.course: list[list[Any]] = []
        if self.event != HEADER:
            self.facts = found.pop("facts", self.facts)
            self.course = found.pop("course", self.course)
        self.body = found
        self.counts = True


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of the file, with their numbers; the last one may lack its end.

    Raises:
        LogError: a line is too long, or the file cannot be uncompressed.
        OSError: the file cannot be read.
    """
    number = 0
    try:
        with _opened(path) as file:
            while raw := file.readline(LONGEST + 1):
                number += 1
                if len(raw) > LONGEST:
                    raise LogError(f"it is longer than {LONGEST >> 20} MiB", path=str(path), line=number)
                yield number, raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise LogError(f"it cannot be uncompressed: {error}", path=str(path), line=number + 1) from error


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", io.BufferedReader(gzip.open(path), 1 << 16))
    return path.open("rb", buffering=1 << 16)


def tail_of(path: Path) -> tuple[int, int, bool]:
    """How many bytes are whole lines, how many after them are torn, and whether the last whole one lacks its end."""
    size, end = 0, b""
    for _, raw in raw_lines(path):
        if raw.endswith(b"\n"):
            size += len(raw)
        else:
            end = raw
    if end and _parsed(end) is not None:
        return size + len(end), 0, True
    return size, len(end), False


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in the line, or None."""
    try:
        found = orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError):
        return None
    return found if type(found) is dict else None


def entries(path: Path) -> Iterator[Entry]:
    """All lines of the log, with those that are superseded marked.

    Lines of others, in a file that a logger of theirs writes, are passed over: that none of ours is
    missing, the sequence numbers tell.

    Raises:
        LogError: something is wrong with a line, or there is no log in the file.
        OSError: the file cannot be read.
    """
    counting = _history(path)
    all_counts = counting == [(1, math.inf)]
    checked = Checked(path)
    for number, raw in raw_lines(path):
        entry = checked.entry(number, raw)
        if entry is not None:
            entry.counts = all_counts or any(first <= number and entry.seq <= last for first, last in counting)
            yield entry
    if checked.last is None:
        raise LogError("there is no log in this file", path=str(path))


def _history(path: Path) -> list[tuple[int, float]]:
    """What counts: pairs of the number of a header's line and the last `seq` from there on that counts."""
    headers: list[tuple[int, int, int | None]] = []
    for number, raw in _lines_with(b'"header"', path):
        if (found := _parsed(raw)) and found.get("event") == HEADER:
            headers.append((number, found.get("seq", 0), found.get("continues")))
    parts: list[tuple[int, float]] = []
    last = math.inf
    for number, seq, continues in reversed(headers):
        if type(seq) is not int or seq > last:
            continue
        parts.append((number, last))
        if type(continues) is not int:
            break
        last = continues
    return parts


def _lines_with(what: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines in which this stands, with their numbers; all others are only counted, many at a time.

    Where the file cannot be read on they end: whoever reads all of it is told.
    """
    number = 1
    with _opened(path) as file, contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):
        while block := file.read(1 << 16):
            block += file.readline(LONGEST)
            if what in block:
                for i, raw in enumerate(block.split(b"\n")):
                    if what in raw:
                        yield number + i, raw
            number += block.count(b"\n")


class Checked:
    """Lines one after the other, and what has to hold from one to the next."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.last: Entry | None = None
        self.torn = False
        self.resume_at = ""  # where this call of `run` goes on

    def entry(self, number: int, raw: bytes) -> Entry | None:
        """The line, checked; None if it is not of this log, or torn at the very end.

        Raises:
            LogError: with what is wrong.
        """
        found = _parsed(raw)
        if found is None:
            if not raw.endswith(b"\n") and self.last is not None:
                return None
            raise self._wrong(number, _why_not(raw))
        if "seq" not in found and "digest" not in found:
            return None
        if (
            type(found.get("seq")) is not int
            or type(found.get("digest")) is not str
            or type(found.get("event")) is not str
            or found["event"] not in EVENTS
        ):
            raise self._wrong(number, "it has no sequence number, digest or phase as a line of a log has")
        entry = Entry(number, found)
        self._check_place(entry)
        self._check_digest(entry, raw)
        if entry.event == HEADER:
            entry.body = upcast(entry.body, self.path, number)
        self._check_form(entry)
        if entry.event == HEADER:
            self.resume_at = entry.body["start"].get("resume_at", "")
        self.last = entry
        return entry

    def _check_place(self, entry: Entry) -> None:
        last = self.last
        if entry.event == HEADER:
            if entry.seq == 0:
                return
            if last is None:
                raise self._wrong(entry.number, f"the log begins with line {entry.seq}: what comes before is missing")
        if last is None:
            raise self._wrong(entry.number, "the log has no header: its beginning is missing")
        if entry.seq != last.seq + 1:
            what = "a repeat" if entry.seq <= last.seq else "a gap"
            raise self._wrong(entry.number, f"{what} in the log: line {entry.seq} comes after line {last.seq}")
        if entry.event not in AHEAD[last.event] and not (last.event == _SETUP and self._resumes_at(entry.event)):
            raise self._wrong(entry.number, f"the machine cannot go from {last.event} to {entry.event}")

    def _resumes_at(self, event: str) -> bool:
        """Whether the place where this training goes on leads to such a line."""
        return self.resume_at in PLACES and event in ONWARD[PLACES[self.resume_at]]

    def _check_digest(self, entry: Entry, raw: bytes) -> None:
        before = "" if self.last is None else self.last.digest
        cut = raw.rfind(_DIGEST)
        body = raw[:cut] + raw[cut + len(_DIGEST) + len(entry.digest) + 1 :].rstrip(b"\r\n")
        if entry.digest == digest(before, body):
            return
        # Another logger wrote it, with bindings or in another order; and it may have begun anew in its stream.
        own = HEADER_KEYS if entry.event == HEADER else KEYS
        body = canonical({name: value for name, value in orjson.loads(raw).items() if name in own and name != "digest"})
        anew = entry.event == HEADER and entry.seq == 0
        if entry.digest == digest(before, body) or (anew and entry.digest == digest("", body)):
            return
        raise self._wrong(entry.number, "its digest does not fit: this line, or the one before it, was changed")

    def _check_form(self, entry: Entry) -> None:
        body = entry.body
        if entry.event == HEADER:
            wrong = wrong_in_header(body)
        elif (
            type(entry.facts) is dict
            and type(entry.course) is list
            and (not entry.course or is_course(entry.course))
            and type(body.get("metrics")) is dict
            and type(body.get("hyper")) is dict
            and type(body.get("answers", _NO_ANSWERS)) is dict
        ):
            return
        else:
            values = {"facts": entry.facts, "course": entry.course, "answers": _NO_ANSWERS, **body}
            mappings = ("facts", "metrics", "hyper", "answers")
            wrong = next((name for name in mappings if type(values.get(name)) is not dict), "course")
            body = values
        if wrong:
            raise self._wrong(
                entry.number, f"its {wrong} is {body.get(wrong)!r:.60}, and not of the form that a log has"
            )

    def _wrong(self, number: int, what: str) -> LogError:
        return LogError(what, path=self.path, line=number)


_DIGEST = b',"digest":"'
_NO_ANSWERS: dict[str, Any] = {}


def _why_not(raw: bytes) -> str:
    try:
        orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError) as error:
        return (
            f"it is no JSON ({error}), and the log does not end here"
            if raw.endswith(b"\n")
            else f"it is no JSON ({error})"
        )
    return "it is no JSON object"
