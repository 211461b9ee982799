"""Checks the lines of a log one after the other, and splits them.

Rules of this file: every fault is a `LogError` with the number of the line. There is a short way for a line as almost
all are; it refuses nothing, but leaves what is unusual to the long one, so both take the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from ..core.phase import BATCH_PHASES, Phase
from .entry import Entry, LazyEntry, entry_of
from .errors import LogError, NotLazyError
from .forms import (
    MAX_DEPTH,
    MAX_EVENTS,
    fault_in_header,
    fault_in_history,
    fault_in_line,
    is_plain,
    is_plain_course,
    is_plain_inside,
    is_too_deep,
)
from .lines import DIGEST_BYTES, HEADER, HISTORY, KEYS, NEXT_EVENTS, OWN_KEYS, PLACES, canonical, digest
from .upcasts import upcast

EVENTS = frozenset({HEADER, HISTORY, *(phase.value for phase in Phase)})

_SETUP = Phase.SETUP.value

_AFTER_HEADER = frozenset({HEADER, HISTORY, _SETUP, Phase.TEARDOWN.value, Phase.FAILED.value})

FOLLOWING: Mapping[str, Set[str]] = {
    HEADER: _AFTER_HEADER,
    HISTORY: _AFTER_HEADER,
    **{phase.value: NEXT_EVENTS[phase] | {HEADER} for phase in Phase},
}
"""By event, the events that the next line can have; always a header too, since a process can be killed anywhere."""

WHICH_LOG = ": give the file that run(…, log=…) wrote"

_IN_BATCHES = frozenset(phase.value for phase in BATCH_PHASES)

_PLAIN_AFTER = {event: following - {HEADER, HISTORY} for event, following in FOLLOWING.items()}


MOST_TAILS = 256
"""So many endings of lines are kept, with what they say."""


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in the line; None if there is none."""
    try:
        value = orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError):
        return None
    return value if type(value) is dict else None


class LineChecker:
    """Checks the lines of a log one after the other: form, digest, sequence number, and the move from the line before.

    Args:
        path: the path of the log.
        lazy: whether what it can of a line is checked only when somebody asks for it, see `LazyEntry`.

    Attributes:
        path: the path of the log, for errors.
        lazy: as given. It can be changed.
        last: the last line that was checked; None at the beginning.
    """

    def __init__(self, path: Path | str, *, lazy: bool = False) -> None:
        self.path = str(path)
        self.lazy = lazy
        self.last: Entry | None = None
        self._seq, self._digest = 0, b""  # of the next line, and of the last one
        self._plain_events: Set[str] = frozenset()  # the events that the next line can have, if it is a plain one
        self._resume_at = ""  # where this call of `run` continues
        # Iteration and valid_batch of the line before, or of the start of this call, or the line that has them.
        self._open = self._opened  # bound once
        self._tails: dict[bytes, tuple[list[list[Any]], str]] = {}  # course and event, by the JSON of both
        self._counts: tuple[int, int] | LazyEntry = 0, 0
        self._further = 0  # the epochs of the history of this call that are in lines to come

    def check(self, number: int, raw: bytes) -> Entry | None:
        """The line; None if another program wrote it, or if it is cut short at the end of the file.

        Raises:
            LogError: the line is damaged, or it cannot follow the line before.
        """
        if self.lazy and (lazy := self._lazy_entry(number, raw)) is not None:
            return lazy
        line = parse_line(raw)
        if line is None:
            if not raw.endswith(b"\n") and self.last is not None:
                return None
            raise self._error(number, _not_json(raw, number))
        return self._plain_entry(number, raw, line) or self._check_any(number, raw, line)

    def _plain_entry(self, number: int, raw: bytes, line: dict[str, Any]) -> Entry | None:
        """The entry of a line as almost all are; None of any other, which `_check_any` takes or refuses.

        It is one method, since calls are what such a line costs.
        """
        if not is_plain(line):
            return None
        seq, event, digits = line["seq"], line["event"], line["digest"]
        if seq != self._seq or event not in self._plain_events or not is_plain_inside(line):
            return None
        if len(raw) > 2 * MAX_DEPTH and is_too_deep(raw, line):
            return None
        cut = raw.rfind(_DIGEST)
        after = cut + _DIGEST_LENGTH + 2 * DIGEST_BYTES
        body = raw[:cut] + raw[after:-1]
        if blake2b(self._digest + body, digest_size=DIGEST_BYTES).hexdigest() != digits or raw[-1:] != b"\n":
            return None
        del line["seq"], line["event"], line["digest"]
        course = line.pop("course", None)
        entry = Entry(number, seq, event, digits, line, line.pop("facts"), course or [])
        if course and (len(course) > 1 or course[0][1] > 1):
            self._check_length(entry)
        else:
            self._counts = line["iteration"], line["valid_batch"]
        self.last = entry
        self._seq, self._digest, self._plain_events = seq + 1, digits.encode(), _PLAIN_AFTER[event]
        return entry

    def _lazy_entry(self, number: int, raw: bytes) -> LazyEntry | None:
        """The entry of a line that looks as this library writes it within a batch; None of any other.

        Its number in the log is compared with the rest of it, or checked when it is opened.
        """
        cut = raw.rfind(_DIGEST)
        after = cut + _LENGTH_WITH_DIGITS
        begin = raw.rfind(_FACTS, 0, cut)
        if begin < 0 or not raw.startswith(_BEGIN):
            return None
        end = raw.find(b"}", begin) + 1  # of the facts
        ending = raw[end:cut] + raw[after:]
        tail = self._tails.get(ending) or self._tail(ending)
        try:
            facts = orjson.loads(raw[begin + _BEFORE_FACTS : end])
        except orjson.JSONDecodeError:
            return None
        if tail is None or tail[1] not in self._plain_events:
            return None
        for value in facts.values():
            kind = type(value)
            if kind is not float and kind is not int:
                return None
        if len(raw) > 2 * MAX_DEPTH and raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
            return None
        before, last = self._digest, self.last
        hashed = _NOTHING_HASHED.copy()  # and three updates take less than to join what is hashed
        hashed.update(before)
        hashed.update(raw[:cut])
        hashed.update(raw[after:-1])
        digits = hashed.hexdigest()
        as_bytes = digits.encode()
        if raw[after - 2 * DIGEST_BYTES - 1 : after] != as_bytes + b'"':
            return None
        assert last is not None
        course, event = tail
        entry = LazyEntry(number, self._seq, event, digits, facts, course, raw, begin, last.event, before, self._open)
        self.last = self._counts = entry
        self._seq += 1
        self._digest, self._plain_events = as_bytes, _PLAIN_AFTER[event]
        return entry

    def _tail(self, ending: bytes) -> tuple[list[list[Any]], str] | None:
        """Course and event of a line that ends so after its facts, without its digest; None if they are not plain."""
        tail = parse_line(b"{" + ending[1:]) if ending.startswith(b",") and ending.endswith(b"\n") else None
        if tail is None or (*tail,) not in (_TAIL, _TAIL_WITH_COURSE):  # facts there would be those of the line
            return None
        course, event = tail.get("course", []), tail["event"]
        if type(event) is not str or event not in _IN_BATCHES or not is_plain_course(course):
            return None
        if len(self._tails) == MOST_TAILS:
            self._tails.clear()
        self._tails[ending] = course, event
        return course, event

    def _opened(self, entry: LazyEntry) -> Entry:
        """The whole of a line, checked as if it was read now.

        Raises:
            LogError: it is damaged.
        """
        then = LineChecker(self.path)
        digits = entry.digest_before
        then.last = Entry(entry.number - 1, entry.seq - 1, entry.event_before, digits.decode(), {}, {}, [])
        then._seq, then._digest, then._plain_events = entry.seq, digits, _PLAIN_AFTER[entry.event_before]
        whole = then.check(entry.number, entry.raw)
        assert whole is not None
        if whole.course != entry.course:
            raise NotLazyError("its course is not where it is written", path=self.path, line=entry.number)
        return whole

    def _check_any(self, number: int, raw: bytes, line: dict[str, Any]) -> Entry | None:
        """As `check`, of a header, of a line that is unusual, and of one that is damaged or another program's."""
        seq, digits, event = line.get("seq"), line.get("digest"), line.get("event")
        if type(seq) is not int or type(digits) is not str or type(event) is not str or event not in EVENTS:
            if "seq" not in line and "digest" not in line:
                return None
            raise self._error(number, "it has no sequence number, digest or phase as a line of a log has")
        if is_too_deep(raw, line):
            raise self._error(number, f"it is nested more than {MAX_DEPTH} deep")
        entry = entry_of(number, line)
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
        self._seq, self._digest = entry.seq + 1, entry.digest.encode()
        self._plain_events = frozenset() if self._further else _PLAIN_AFTER[entry.event]
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
        counts, body = self._counts, entry.body
        if entry.event == HEADER:
            body = body["start"]
        self._counts = now = body["iteration"], body["valid_batch"]
        if not entry.course:
            return
        if len(entry.course) == 1 and entry.course[0][1] == 1:
            return
        if isinstance(counts, LazyEntry):
            counts = counts.body["iteration"], counts.body["valid_batch"]
        iteration, valid_batch = counts
        times = [count for _, count in entry.course]
        # One batch may be fetched and not finished, one be before the epoch's end, one a validation's.
        most = max(0, now[0] - iteration) + max(valid_batch, now[1]) + 3
        if max(times) > most:
            raise self._error(entry.number, f"its course has more events than the {most} that its counters allow")
        if sum(times) > MAX_EVENTS:
            raise self._error(entry.number, f"its course has more than {MAX_EVENTS} events, and a replay takes each")

    def _error(self, number: int, what: str) -> LogError:
        return LogError(what, path=self.path, line=number)


_DIGEST = b',"digest":"'
_DIGEST_LENGTH = len(b',"digest":""')
_LENGTH_WITH_DIGITS = _DIGEST_LENGTH + 2 * DIGEST_BYTES
_BEGIN = b'{"seq":'
_FACTS = b',"facts":{'
_BEFORE_FACTS = len(b',"facts":')
_NOTHING_HASHED = blake2b(digest_size=DIGEST_BYTES)
_TAIL, _TAIL_WITH_COURSE = ("event",), ("course", "event")


def _not_json(raw: bytes, number: int) -> str:
    """Why the line is no JSON object. The first one of a log may be a header that a crash cut short."""
    of_log = number > 1 or raw.startswith(b'{"seq":')
    try:
        orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError) as error:
        more = ", and the log does not end here" if raw.endswith(b"\n") else ""
        return f"it is no JSON ({error}){more if of_log else WHICH_LOG}"
    return f"it is no JSON object{'' if of_log else WHICH_LOG}"
