"""A recorded training as a workload: it gives the batches, facts and metrics that are in the log. Torch-free.

Rule of this file: it decides nothing and knows nothing but the log. A request in another order than the recorded
one, or beyond the end of the log, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from os import PathLike
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
from .entry import Entry, LazyEntry
from .errors import LogError
from .lines import EVENT, HELD_BACK, decode_hyper, decode_numbers, decode_plan, decode_state
from .log_lines import END, LogLines, is_line_of

_FINAL_EVENTS = frozenset(EVENT[phase] for phase in FINAL)


class Recorded(LogLines, Workload):
    """A workload that gives what a logged training measured.

    >>> from fsm_train import Recorded, run
    >>> final = run(Recorded("run.jsonl").start(), callbacks)  # doctest: +SKIP

    A log can hold several calls of `run`, after suspensions and extensions. `start` gives the first state of the
    next one.

    Args:
        log: the path of a log, or the `Entry`s of one.
        lazy: whether the lines of a path are checked only as far as somebody asks for them, or compares them; see
            `open_lines`.

    Attributes:
        path: the path of the log; "" if entries were given.
        header: the header of the current call of `run`; before the first `start`, that of the first call.
        out_of_step: whether something was requested that the log does not have there.
    """

    hands_on_signals = False  # a recorded signal is none for this process

    def __init__(self, log: str | PathLike[str] | Iterator[Entry], *, lazy: bool = False) -> None:
        super().__init__(log, lazy=lazy)
        self._hyper: Mapping[str, Hyper] = decode_hyper(self.header.body["start"]["hyper"])

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
        self.begin_call(header)
        try:
            state = self._state(header.body["start"], last, memories or {})
        except CannotDecodeError as error:
            raise self._error(f"its start cannot be made again: {error}", header.number) from error
        self.read_first_line()
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
        if entry is None:
            return {}
        return entry.facts if type(entry) is LazyEntry else decode_numbers(entry.facts)

    def prepare(self, state: State) -> None:
        self.take_signal()

    def fetch(self) -> float | None:
        size = self._course[0][0] if self._course else self.peek()
        if size is not None and type(size) is not int and type(size) is not float:
            raise self.unexpected("a batch", size)
        self.advance()
        return size

    fetch_valid = fetch

    def step(self) -> bool:
        if (self._course[0][0] if self._course else self.peek()) == HELD_BACK:
            self.advance()
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
        entry = self.peek()
        if isinstance(entry, Entry):
            self.advance()
        else:
            failed = self.next_line()
            if entry is not END or failed is None or not failed.body.get("error") or not before(failed.body):
                raise self.unexpected("the metrics", entry)
            entry = failed
        return decode_numbers(entry.body["metrics"])

    def finish(self, state: State) -> None:
        self.interrupt = None  # a recorded signal is none for this process
        for _, entry in self.lines_here():
            if entry.event in _FINAL_EVENTS and is_line_of(entry, state):
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


def _nothing() -> None:
    """What a command does that changes no hyper-parameter."""
