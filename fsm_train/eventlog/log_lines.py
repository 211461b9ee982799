"""The lines of a log in the order of a training: what is read of them, and how far a rerun is.

Rule of this file: it knows lines and the course in them, and nothing of a workload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import orjson

from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from .ahead import read_ahead
from .checker import LineChecker
from .encoder import AnswerEncoder, LineEncoder, begins_as
from .entries import entries
from .entry import Entry, LazyEntry, open_line
from .errors import EndOfLogError, LogError, OutOfStepError
from .history import ADDS_EPOCHS, LoggedHistory
from .lines import EVENT, HEADER, HELD_BACK, MEASURED, AnswerCache

END = object()
"""What comes after the last item of the course."""

MOST_LINES = len(Phase)
"""The most lines in a row without an item of the course: the machine passes no phase twice without one."""

OTHERWISE_WRITTEN = 8
"""So many lines that say the same in other bytes, as those of another version may, and no more of them are lazy."""


class LogLines:
    """The lines of a log that count, those of one call of `run` after the other.

    Args:
        log: the path of a log, or the `Entry`s of one.
        lazy: whether the lines of a path are checked only as far as somebody asks for them, or compares them.

    Raises:
        LogError: the log does not begin with a header, or cannot be read.

    Attributes:
        path: the path of the log; "" if entries were given.
        header: the header of the current call of `run`; before the first, that of the first call.
        interrupt: the signal that is next in the course, once all before it is over.
        out_of_step: whether something was requested that the log does not have there.
    """

    def __init__(self, log: str | PathLike[str] | Iterator[Entry], *, lazy: bool = False) -> None:
        self.path = ""
        self._checker: LineChecker | None = None
        self._encoder, self._answers = LineEncoder(), AnswerEncoder(AnswerCache().answers_of)
        self._written_otherwise = 0  # lazy lines that say what was to be written, in other bytes
        if isinstance(log, (str, PathLike)):
            self.path = str(log)
            self._checker = LineChecker(self.path, lazy=lazy)
            log = read_ahead(entries(Path(log), self._checker))
        self.interrupt: str | None = None
        self._entries = log
        self._history = LoggedHistory(self.path)
        self._lookahead: Entry | None = self._next_entry()  # the entry after those in `_lines`
        if self._lookahead is None or self._lookahead.event != HEADER:
            raise LogError("a recorded training begins with a header, and there is none", path=self.path)
        self.header: Entry = self._lookahead
        self.out_of_step = False
        self._lines: deque[tuple[int, Entry]] = deque()  # read and not passed; with the number of items before each
        self._course: deque[list[Any]] = deque()  # the items that are read and not over: [what, count]
        self._items_read = self._items_over = 0  # the number of items of the course
        self._eventless = 0  # the number of lines since the last one that had an item
        self._last_number = self.header.number  # of the last line that was read

    @property
    def next_header(self) -> Entry | None:
        """The header of the next call of `run`; None if there is none. Skips the rest of the current call."""
        while self._lookahead is not None and self._lookahead.event != HEADER:
            open_line(self._lookahead)
            self._lookahead = self._next_entry()
        return self._lookahead

    def begin_call(self, header: Entry) -> None:
        """Begin the call of `run` with this header."""
        self.open_lines()
        self.header = header
        self.out_of_step = False
        self._lines.clear()
        self._course.clear()
        self._items_read = self._items_over = self._eventless = 0
        self._last_number = header.number

    def read_first_line(self) -> None:
        """Read the line after the header, once what the header says is known to be sound."""
        self._lookahead = self._next_entry()

    def open_lines(self) -> None:
        """Check all of the lines that were read so far, also where they are lazy.

        Whoever says something about the log does this first: what is damaged and was read is an error of the log.

        Raises:
            LogError: one of them is damaged.
        """
        for _, entry in self._lines:
            open_line(entry)
        if self._lookahead is not None:
            open_line(self._lookahead)

    def _next_entry(self) -> Entry | None:
        """The next entry, seen by the history; None at the end of the log."""
        entry = next(self._entries, None)
        if type(entry) is Entry and entry.event in ADDS_EPOCHS:
            self._history.see(entry)
        return entry

    def _read_line(self) -> bool:
        """Read the next line of this call of `run`; False at its end."""
        entry = self._lookahead
        if entry is None or entry.event == HEADER:
            return False
        self._lookahead = following = next(self._entries, None)  # as `_next_entry` does, in the same frame
        if type(following) is Entry and following.event in ADDS_EPOCHS:
            self._history.see(following)
        self._last_number = entry.number
        self._eventless += 1
        if type(entry) is LazyEntry:
            if entry.course:
                self._course.append(entry.course[0])  # it happened once, so it is taken off, and not written to
                self._items_read += 1
                self._eventless = 0
        else:
            self._read_course(entry)
        if self._eventless > MOST_LINES:
            raise self._error("the lines go on without a batch, and no training does", entry.number)
        self._lines.append((self._items_read, entry))
        return True

    def _read_course(self, entry: Entry) -> None:
        if entry.course:
            self._course.extend(map(list, entry.course))
            self._items_read += len(entry.course)
            self._eventless = 0
        if entry.event in MEASURED and not entry.body.get("error"):
            self._course.append([entry, 1])
            self._items_read += 1
            self._eventless = 0

    def peek(self) -> Any:
        """The next item of the course, which stays there; `END` if there is none."""
        while not self._course:
            if not self._read_line():
                return END
        return self._course[0][0]

    def advance(self) -> None:
        """Go past one occurrence of the next item, and past a signal right after it."""
        course = self._course
        if course[0][1] > 1:
            course[0][1] -= 1
            return
        course.popleft()
        self._items_over += 1
        following = course[0][0] if course else self.peek()
        if type(following) is str and following != HELD_BACK:
            self.take_signal()

    def take_signal(self) -> None:
        """Set `interrupt` if the next item is a signal."""
        item = self.peek()
        if type(item) is str and item != HELD_BACK:
            self.interrupt = item
            self._course.popleft()
            self._items_over += 1

    def next_line(self) -> Entry | None:
        """The next line that was not passed; None at the end of this call of `run`."""
        return self._lines[0][1] if self._lines or self._read_line() else None

    def pass_line(self) -> None:
        """Go past the next line."""
        self._lines.popleft()

    def pass_if(self, event: str, body: Mapping[str, Any]) -> bool:
        """Go past the next line if it is this one, and the course up to it is over; whether that was so."""
        if not self._lines and not self._read_line():
            return False
        needed, entry = self._lines[0]
        if needed > self._items_over or entry.event != event or entry.body != body:
            return False
        self._lines.popleft()
        if type(entry) is LazyEntry:
            self._written_otherwise += 1
            if self._written_otherwise == OTHERWISE_WRITTEN and self._checker is not None:
                self._checker.lazy = False
        return True

    def pass_if_written(self, state: State, answers: Mapping[str, Transition]) -> bool:
        """As `pass_if`, of a lazy line that is written so of this state and these answers; it is not parsed for that.

        False also where the same is written in another way.
        """
        if not self._lines and not self._read_line():
            return False
        needed, entry = self._lines[0]
        if type(entry) is not LazyEntry or needed > self._items_over or entry.event != EVENT[state.phase]:
            return False
        encoded = self._answers.encode(answers)[0] if answers else b""
        head = orjson.dumps(self._encoder.head(entry.seq, state, encoded))[:-1]
        if len(head) != entry.head or not entry.raw.startswith(head):
            return False
        self._lines.popleft()
        return True

    def line_at(self, state: State) -> Entry | None:
        """The line of this state; None if it has none. Lines before it are passed."""
        event = EVENT[state.phase]
        if self._lines:  # it is almost always the first
            needed, entry = self._lines[0]
            if needed <= self._items_over and entry.event == event and is_line_of(entry, state):
                return entry
        for before, entry in self.lines_here():
            if entry.event == event and is_line_of(entry, state):
                for _ in range(before):
                    open_line(self._lines.popleft()[1])
                return entry
        return None

    def lines_here(self) -> Iterator[tuple[int, Entry]]:
        """The lines that were not passed, up to the next item of the course, with the number of lines before each."""
        before = 0
        while before < len(self._lines) or self._read_line():
            needed, entry = self._lines[before]
            if needed > self._items_over:
                return
            yield before, entry
            before += 1

    def unexpected(self, requested: str, item: Any) -> LogError:
        """The error of a request where the log has this item next."""
        self.out_of_step = True
        if item is END:
            return EndOfLogError(requested, "the end of the log", path=self.path, line=self._last_number)
        recorded = f"the metrics of {item.event}" if isinstance(item, Entry) else _describe(item)
        return OutOfStepError(requested, recorded, path=self.path, line=self._last_number)

    def _error(self, what: str, line: int) -> LogError:
        return LogError(what, path=self.path, line=line)


def is_line_of(entry: Entry, state: State) -> bool:
    """Whether the line has the counters of this state."""
    if type(entry) is LazyEntry and not state.players and begins_as(entry.raw, entry.seq, state):
        return True
    body = entry.body
    return (
        body["iteration"] == state.iteration
        and body["epoch"] == state.epoch
        and body["valid_batch"] == state.valid_batch
        and body["step"] == state.step
        and ("turns" not in body or body["turns"]["turn"] == state.players.turn)
    )


def _describe(item: object) -> str:
    if item is None:
        return "the end of the data"
    return f"a batch of {item}" if isinstance(item, (int, float)) else f"{item!r:.60}"
