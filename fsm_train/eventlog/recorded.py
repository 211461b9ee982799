"""A recorded training, as a workload: it says again what the real one said. Torch-free.

Rule of this file: it decides nothing and knows nothing that is not in the log. What is asked of it in
another order than it was recorded in, or beyond the end of the log, is an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Set
from os import PathLike
from pathlib import Path
from typing import Any

import attrs

from ..core.phase import FINAL, Operation, Phase
from ..core.state import Hyper, State
from ..core.transition import Command
from ..core.values import FrozenMap
from ..core.workload import BRACKETS, Workload
from ..encoding import CannotDecodeError, decode
from .entries import Entry, entries
from .errors import EndOfLogError, LogError, OutOfStepError
from .lines import EVENT, HEADER, HELD_BACK, hyper_in, numbers_in, plan_in, state_in

_MEASURED = frozenset({Phase.EPOCH_END.value, Phase.VALID_END.value})

_END = object()


class Recorded(Workload):
    """Says again what a training said that was logged.

    >>> from fsm_train import Recorded, run
    >>> final = run(Recorded("run.jsonl").start(), callbacks)  # doctest: +SKIP

    A log can hold several calls of `run`, after suspensions and extensions: `start` gives the state
    with which the next of them began.

    Args:
        log: the path of a log, or the `Entry`s of one.

    Attributes:
        header: what the call of `run` under way began with, as it stands in the log.
    """

    def __init__(self, log: str | PathLike[str] | Iterator[Entry]) -> None:
        if isinstance(log, (str, PathLike)):
            self.path = str(log)
            log = (entry for entry in entries(Path(log)) if entry.counts)
        else:
            self.path = ""
        self.interrupt: str | None = None
        self._entries = log
        self._coming: Entry | None = next(log, None)  # read last, and not taken in yet
        if self._coming is None or self._coming.event != HEADER:
            raise LogError("a recorded training begins with a header, and there is none", path=self.path)
        self.header: Entry = self._coming
        self.asked_beyond = False  # whether something was asked that the log does not know
        self._lines: deque[tuple[int, Entry]] = deque()  # taken in, and not passed; with the runs that lead there
        self._course: deque[list[Any]] = deque()  # what will happen: [what, times]
        self._noted = self._passed = 0  # runs of the course: taken in, and over
        self._hyper: Mapping[str, Hyper] = self._decoded(hyper_in, self.header.body["start"].get("hyper"), self.header)
        self._ended_at = self.header.number

    # ------------------------------------------------------------------------ the calls of run

    def start(self, last: State | None = None, memories: Mapping[str, Mapping[str, type]] | None = None) -> State:
        """The state with which the next recorded call of `run` began, with this workload on it.

        Args:
            last: how the call before it ended, in this replay; its memories are taken over as far
                as they are those in the log.
            memories: by callback, the classes that records in its memory are of.

        Raises:
            LogError: there is no further call of `run`, or its header is not what it should be.
        """
        header = self.next_header
        if header is None:
            raise LogError("there is no further call of run in this log", path=self.path)
        self.header = header
        self.asked_beyond = False
        self._lines.clear()
        self._course.clear()
        self._noted = self._passed = 0
        self._ended_at = header.number
        self._coming = next(self._entries, None)
        try:
            return self._state(header.body["start"], last, memories or {})
        except (CannotDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._wrong(f"its start cannot be made again: {error}", header.number) from error

    def _state(self, start: Mapping[str, Any], last: State | None, memories: Mapping[str, Mapping[str, type]]) -> State:
        blank = State(Phase.READY, plan_in(start), has_valid=start["has_valid"], fetched=start["fetched"])
        state = state_in(start, Phase.READY, blank)
        self._hyper = state.hyper
        begins_anew = state.iteration == 0 and state.epoch == 0 and state.resume_at is None
        known = {} if last is None else last.memory
        memory = {
            name: known[name] if name in known else decode(value, memories.get(name))
            for name, value in start["memory"].items()
            if not begins_anew and (name in known or name in memories)
        }
        return attrs.evolve(
            state,
            history=tuple(numbers_in(metrics) for metrics in start["history"]),
            memory=FrozenMap(memory),
            workload=self,
        )

    @property
    def next_header(self) -> Entry | None:
        """The header of the next call of `run`, if there is one; what is left of this call is passed over."""
        while self._coming is not None and self._coming.event != HEADER:
            self._coming = next(self._entries, None)
        return self._coming

    # ------------------------------------------------------------------------ where in the log

    def _take_in(self) -> bool:
        """Take in the next line of this call of `run`; False at the end of it."""
        entry = self._coming
        if entry is None or entry.event == HEADER:
            return False
        self._coming = next(self._entries, None)
        self._ended_at = entry.number
        for run in entry.course:
            self._course.append(list(run))
        self._noted += len(entry.course)
        if entry.event in _MEASURED and not entry.body.get("error"):
            self._course.append([entry, 1])
            self._noted += 1
        self._lines.append((self._noted, entry))
        return True

    def _next(self) -> Any:
        """What happens next, without letting it happen."""
        while not self._course:
            if not self._take_in():
                return _END
        return self._course[0][0]

    def _happens(self) -> None:
        """It happens. If a signal comes right after it, it is there now."""
        run = self._course[0]
        run[1] -= 1
        if run[1] == 0:
            self._course.popleft()
            self._passed += 1
            self._interrupted()

    def _interrupted(self) -> None:
        following = self._next()
        if type(following) is str and following != HELD_BACK:
            self.interrupt = following
            self._course.popleft()
            self._passed += 1

    def upcoming(self) -> Entry | None:
        """The next line that tells of a look; None at the end of this call of `run`."""
        return self._lines[0][1] if self._lines or self._take_in() else None

    def reached(self) -> bool:
        """Whether all that leads to the next line has happened."""
        return bool(self._lines or self._take_in()) and self._lines[0][0] <= self._passed

    def pass_line(self) -> None:
        """The look that the next line tells of is over."""
        self._lines.popleft()

    def line_at(self, state: State) -> Entry | None:
        """The line that tells of the look at this state, if it has one. Lines before it are passed."""
        before, event = 0, EVENT[state.phase]
        while before < len(self._lines) or self._take_in():
            needed, entry = self._lines[before]
            if needed > self._passed:
                return None
            if entry.event == event and _is_there(entry.body, state):
                for _ in range(before):
                    self._lines.popleft()
                return entry
            before += 1
        return None

    # ------------------------------------------------------------------ what the interpreter asks

    @property
    def informed(self) -> Set[Operation]:
        return BRACKETS

    @property
    def has_valid(self) -> bool:
        return bool(self.header.body["start"].get("has_valid"))

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
        if command.changes_hyper and (entry := self.line_at(state)) is not None:
            self._hyper = self._decoded(hyper_in, entry.body["hyper"], entry)

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        """All facts of this look that were recorded, whoever asked for them then."""
        entry = None if state.phase in FINAL else self.line_at(state)  # nothing is measured at the end
        facts: Mapping[str, float] = {} if entry is None else self._decoded(numbers_in, entry.facts, entry)
        return facts

    def prepare(self, state: State) -> None:
        self._hyper = {**self._hyper, **state.hyper}
        self._interrupted()

    def fetch(self) -> int | None:
        size = self._next()
        if size is not None and type(size) is not int:
            raise self._unexpected("a batch", size)
        self._happens()
        return size

    fetch_valid = fetch

    def step(self) -> bool:
        if self._next() == HELD_BACK:
            self._happens()
            return False
        return True

    def measure(self, state: State) -> Mapping[str, float]:
        entry = self._next()
        if type(entry) is not Entry:
            raise self._unexpected("the metrics", entry)
        measured: Mapping[str, float] = self._decoded(numbers_in, entry.body["metrics"], entry)
        self._happens()
        return measured

    measure_valid = measure

    def finish(self, state: State) -> None:
        self.interrupt = None  # one that was recorded is never one for the process that replays it

    def snapshot(self) -> object:
        raise LogError("a recorded training cannot be put back: read the log again", path=self.path)

    def put_back(self, snapshot: object) -> None:
        raise LogError("a recorded training cannot be put back: read the log again", path=self.path)

    def reposition(self, state: State) -> None:
        """It is where the log is."""

    def open(self, state: State) -> None:
        """Nothing to do: what is fetched is in the log. So with the following."""

    def forward(self) -> None: ...
    def loss(self) -> None: ...
    def backward(self) -> None: ...
    def unscale(self) -> None: ...
    def zero(self) -> None: ...
    def open_valid(self, state: State) -> None: ...
    def evaluate(self) -> None: ...
    def abandon(self, state: State) -> None: ...

    # ------------------------------------------------------------------------------- errors

    def _decoded(self, how: Any, value: Any, entry: Entry) -> Any:
        try:
            return how(value)
        except (CannotDecodeError, AttributeError) as error:
            raise self._wrong(str(error), entry.number) from error

    def _unexpected(self, asked: str, found: Any) -> LogError:
        self.asked_beyond = True
        if found is _END:
            return EndOfLogError(asked, "the end of the log", path=self.path, line=self._ended_at)
        what = f"the metrics of {found.event}" if type(found) is Entry else _said(found)
        return OutOfStepError(asked, what, path=self.path, line=self._ended_at)

    def _wrong(self, what: str, line: int) -> LogError:
        return LogError(what, path=self.path, line=line)


def _is_there(body: Mapping[str, Any], state: State) -> bool:
    """Whether the line tells of the look at this state."""
    return (
        body.get("iteration") == state.iteration
        and body.get("epoch") == state.epoch
        and body.get("valid_batch") == state.valid_batch
        and body.get("step") == state.step
    )


def _said(what: object) -> str:
    if what is None:
        return "the end of the data"
    return f"a batch of {what}" if isinstance(what, int) else f"{what!r:.60}"
