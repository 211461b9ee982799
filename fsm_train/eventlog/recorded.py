"""A recorded training as a workload: it gives the batches, facts and metrics that are in the log. Torch-free.

Rule of this file: it decides nothing and knows nothing but the log. A request in another order than the recorded
one, or beyond the end of the log, is an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from os import PathLike
from pathlib import Path
from typing import Any

import attrs

from ..core.phase import FINAL, Operation, Phase
from ..core.runs import is_new_training
from ..core.state import Hyper, State
from ..core.transition import Command
from ..core.turns import Players
from ..core.values import FrozenMap
from ..core.workload import BRACKETS, Workload
from ..encoding import CannotDecodeError, decode
from .ahead import read_ahead
from .entries import entries
from .entry import Entry
from .errors import EndOfLogError, LogError, OutOfStepError
from .history import ADDS_EPOCHS, LoggedHistory
from .lines import (
    EVENT,
    HEADER,
    HELD_BACK,
    MEASURED,
    decode_hyper,
    decode_numbers,
    decode_plan,
    decode_state,
)

_END = object()
_MOST_LINES = len(Phase)
"""The most lines in a row without an item of the course: the machine passes no phase twice without one."""

_FINAL_EVENTS = frozenset(EVENT[phase] for phase in FINAL)


class Recorded(Workload):
    """A workload that gives what a logged training measured.

    >>> from fsm_train import Recorded, run
    >>> final = run(Recorded("run.jsonl").start(), callbacks)  # doctest: +SKIP

    A log can hold several calls of `run`, after suspensions and extensions. `start` gives the first state of the
    next one.

    Args:
        log: the path of a log, or the `Entry`s of one.

    Attributes:
        path: the path of the log; "" if entries were given.
        header: the header of the current call of `run`; before the first `start`, that of the first call.
        out_of_step: whether something was requested that the log does not have there.
    """

    hands_on_signals = False  # a recorded signal is none for this process

    def __init__(self, log: str | PathLike[str] | Iterator[Entry]) -> None:
        if isinstance(log, (str, PathLike)):
            self.path = str(log)
            log = (entry for entry in read_ahead(entries(Path(log))) if entry.counts)
        else:
            self.path = ""
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
        self._hyper: Mapping[str, Hyper] = decode_hyper(self.header.body["start"]["hyper"])
        self._last_number = self.header.number  # of the last line that was read

    # ------------------------------------------------------------------------ the calls of run

    def start(self, last: State | None = None, memories: Mapping[str, Mapping[str, type]] | None = None) -> State:
        """The first state of the next recorded call of `run`, with this workload.

        Args:
            last: the last state of the call before; its memories are kept, where the log has one of that callback,
                unless that call failed: what is saved of it has forgotten what was decided in the batch that failed.
            memories: by callback, the classes of the records in its memory.

        Raises:
            LogError: there is no further call of `run`, or its header does not have the form of a log.
        """
        header = self.next_header
        if header is None:
            raise LogError("there is no further call of run in this log", path=self.path)
        self.header = header
        self.out_of_step = False
        self._lines.clear()
        self._course.clear()
        self._items_read = self._items_over = self._eventless = 0
        self._last_number = header.number
        try:
            state = self._state(header.body["start"], last, memories or {})
        except CannotDecodeError as error:
            raise self._error(f"its start cannot be made again: {error}", header.number) from error
        self._lookahead = self._next_entry()
        return state

    def _state(self, start: Mapping[str, Any], last: State | None, memories: Mapping[str, Mapping[str, type]]) -> State:
        if start.get("further"):
            raise CannotDecodeError(f"the log ends before the last {start['further']} epochs of its history")
        try:
            players = Players.of(start.get("players", {}))
            blank = State(
                *(Phase.READY, decode_plan(start)),
                has_valid=start["has_valid"],
                fetched=start["fetched"],
                players=players,
            )
            state = decode_state(start, Phase.READY, blank)
        except ValueError as error:
            raise CannotDecodeError(str(error)) from error
        self._hyper = state.hyper
        is_new = is_new_training(state)
        known = {} if last is None or last.error else last.memory
        memory = {
            name: known[name] if name in known else decode(value, memories.get(name))
            for name, value in start["memory"].items()
            if not is_new and (name in known or name in memories)
        }
        return attrs.evolve(
            state,
            history=self._history.whole(),
            memory=FrozenMap(memory),
            workload=self,
        )

    @property
    def next_header(self) -> Entry | None:
        """The header of the next call of `run`; None if there is none. Skips the rest of the current call."""
        while self._lookahead is not None and self._lookahead.event != HEADER:
            self._lookahead = self._next_entry()
        return self._lookahead

    def _next_entry(self) -> Entry | None:
        """The next entry, seen by the history; None at the end of the log."""
        entry = next(self._entries, None)
        if entry is not None and entry.event in ADDS_EPOCHS:
            self._history.see(entry)
        return entry

    # ------------------------------------------------------------------------ where in the log

    def _read_line(self) -> bool:
        """Read the next line of this call of `run`; False at its end."""
        entry = self._lookahead
        if entry is None or entry.event == HEADER:
            return False
        self._lookahead = self._next_entry()
        self._last_number = entry.number
        self._eventless += 1
        if entry.course:
            self._course.extend(map(list, entry.course))
            self._items_read += len(entry.course)
            self._eventless = 0
        if entry.event in MEASURED and not entry.body.get("error"):
            self._course.append([entry, 1])
            self._items_read += 1
            self._eventless = 0
        if self._eventless > _MOST_LINES:
            raise self._error("the lines go on without a batch, and no training does", entry.number)
        self._lines.append((self._items_read, entry))
        return True

    def _peek(self) -> Any:
        """The next item of the course, which stays there."""
        while not self._course:
            if not self._read_line():
                return _END
        return self._course[0][0]

    def _advance(self) -> None:
        """Go past one occurrence of the next item, and past a signal right after it."""
        item = self._course[0]
        item[1] -= 1
        if item[1] == 0:
            self._course.popleft()
            self._items_over += 1
            self._take_signal()

    def _take_signal(self) -> None:
        """Set `interrupt` if the next item is a signal."""
        item = self._peek()
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
        return True

    def line_at(self, state: State) -> Entry | None:
        """The line of this state; None if it has none. Lines before it are passed."""
        event = EVENT[state.phase]
        if self._lines:  # it is almost always the first
            needed, entry = self._lines[0]
            if needed <= self._items_over and entry.event == event and _is_line_of(entry.body, state):
                return entry
        for before, entry in self._lines_here():
            if entry.event == event and _is_line_of(entry.body, state):
                for _ in range(before):
                    self._lines.popleft()
                return entry
        return None

    def _lines_here(self) -> Iterator[tuple[int, Entry]]:
        """The lines that were not passed, up to the next item of the course, with the number of lines before each."""
        before = 0
        while before < len(self._lines) or self._read_line():
            needed, entry = self._lines[before]
            if needed > self._items_over:
                return
            yield before, entry
            before += 1

    # ------------------------------------------------------------------ what the interpreter asks

    @property
    def informed(self) -> Set[Operation]:
        return BRACKETS

    @property
    def batches_per_epoch(self) -> int | None:
        """As it was; None of a log that was written before this was recorded."""
        found: int | None = self.header.body["start"].get("batches_per_epoch")
        return found

    @property
    def players(self) -> Mapping[str, int]:
        found: Mapping[str, int] = self.header.body["start"].get("players", {})
        return found

    @property
    def has_valid(self) -> bool:
        return bool(self.header.body["start"]["has_valid"])

    @property
    def sensors(self) -> Set[str]:
        return frozenset(self.header.body["sensors"])

    def carries(self, kind: type[Command]) -> bool:
        return True

    def hyper(self) -> Mapping[str, Hyper]:
        return self._hyper

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        self._hyper = {**self._hyper, **changes}

    def carry_out(self, command: Command, state: State) -> None:
        if command.changes_hyper is not False and (entry := self.line_at(state)) is not None:
            self._hyper = decode_hyper(entry.body["hyper"])

    def bound(self, command: Command, phase: Phase) -> Callable[[], object] | None:
        return _nothing if command.changes_hyper is False else None

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        """All facts in the line of this state, also those that are not in `names`."""
        entry = None if state.phase in FINAL else self.line_at(state)  # nothing is measured at the end
        return {} if entry is None else decode_numbers(entry.facts)

    def prepare(self, state: State) -> None:
        self._take_signal()

    def fetch(self) -> float | None:
        size = self._peek()
        if size is not None and type(size) is not int and type(size) is not float:
            raise self._unexpected("a batch", size)
        self._advance()
        return size

    fetch_valid = fetch

    def step(self) -> bool:
        if self._peek() == HELD_BACK:
            self._advance()
            return False
        return True

    def measure(self, state: State) -> Mapping[str, float]:
        return self._measured(lambda failed: failed.get("epoch") == state.epoch + 1)

    def measure_valid(self, state: State) -> Mapping[str, float]:
        return self._measured(lambda failed: failed.get("validated_at") == state.iteration)

    def _measured(self, before: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, float]:
        """The metrics in the line of what was measured.

        If a command failed that was given there, it has no line: `before` says whether the line of the failure is from
        after the measurement, and it repeats the metrics.
        """
        entry = self._peek()
        if type(entry) is Entry:
            self._advance()
        else:
            failed = self.next_line()
            if entry is not _END or failed is None or not failed.body.get("error") or not before(failed.body):
                raise self._unexpected("the metrics", entry)
            entry = failed
        return decode_numbers(entry.body["metrics"])

    def finish(self, state: State) -> None:
        self.interrupt = None  # a recorded signal is none for this process
        for _, entry in self._lines_here():
            if entry.event in _FINAL_EVENTS and _is_line_of(entry.body, state):
                self._hyper = decode_hyper(entry.body["hyper"])

    def snapshot(self) -> object:
        raise LogError("a recorded training cannot be put back: read the log again", path=self.path)

    def put_back(self, snapshot: object) -> None:
        raise LogError("a recorded training cannot be put back: read the log again", path=self.path)

    def reposition(self, state: State) -> None:
        """Nothing to do: the log is where it was."""

    def open(self, state: State) -> None:
        """Nothing to do, as in the methods below: the results are in the log."""

    def forward(self) -> None: ...
    def loss(self) -> None: ...
    def discard(self) -> None: ...
    def backward(self) -> None: ...
    def unscale(self) -> None: ...
    def zero(self) -> None: ...
    def open_valid(self, state: State) -> None: ...
    def evaluate(self) -> None: ...
    def abandon(self, state: State) -> None: ...

    # ------------------------------------------------------------------------------- errors

    def _unexpected(self, requested: str, item: Any) -> LogError:
        self.out_of_step = True
        if item is _END:
            return EndOfLogError(requested, "the end of the log", path=self.path, line=self._last_number)
        recorded = f"the metrics of {item.event}" if type(item) is Entry else _describe(item)
        return OutOfStepError(requested, recorded, path=self.path, line=self._last_number)

    def _error(self, what: str, line: int) -> LogError:
        return LogError(what, path=self.path, line=line)


def _is_line_of(body: Mapping[str, Any], state: State) -> bool:
    """Whether the line has the counters of this state."""
    return (
        body["iteration"] == state.iteration
        and body["epoch"] == state.epoch
        and body["valid_batch"] == state.valid_batch
        and body["step"] == state.step
        and ("turns" not in body or body["turns"]["turn"] == state.players.turn)
    )


def _nothing() -> None:
    """What a command does that changes no hyper-parameter."""


def _describe(item: object) -> str:
    if item is None:
        return "the end of the data"
    return f"a batch of {item}" if isinstance(item, (int, float)) else f"{item!r:.60}"
