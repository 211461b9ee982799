"""Writing the log: a sink that misses nothing, through structlog.

Rules of this file: what is written depends on the training alone, never on who else watches or on the
clock, so that equal trainings have equal logs. A log that cannot be written is one clear warning and
a note on the last state; the training goes on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import structlog

from ..core.callback import Callback
from ..core.phase import FINAL, Operation, Phase
from ..core.state import State
from ..core.table import Outcome
from ..core.transition import Transition
from ..core.workload import Workload
from ..encoding import Json, numbers
from ..sinks.base import Recorder
from ..worlds.proxy import WorkloadProxy
from .append import Continuation, continuation
from .errors import LogError
from .lines import ALWAYS, EVENT, HEADER, HEADER_KEYS, HELD_BACK, KEYS, canonical, digest, header_of, line_of

FLUSHED_AT = frozenset({Phase.EPOCH_END, *FINAL})


class EventLog(Recorder):
    """Writes what happens in a training, as JSON lines.

    The first line of a call of `run` is the header: plan, callbacks with their settings, the state that
    it begins with. Then there is a line for each look at which a callback is consulted, and for each
    SETUP, EPOCH_BEGIN, VALID_END, EPOCH_END, TEARDOWN and final phase. What the course of the machine
    depends on (batch sizes, steps held back, signals) stands in the lines in any case, run-length
    encoded, so that a training which nobody watches per batch writes a few lines an epoch.

    A file that is there is continued: of a training that goes on, the lines that come after the point it
    goes on from are superseded, and of one that begins anew, all lines before it.

    >>> from fsm_train import run, start
    >>> from fsm_train.eventlog import read_log
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(), epochs=1), log=EventLog("run.jsonl", run_id=7))
    >>> header, *lines = read_log("run.jsonl")
    >>> [line.phase.value for line in lines]
    ['setup', 'epoch_begin', 'epoch_end', 'teardown', 'done']

    Args:
        to: a path; or a bound logger of structlog, which gets each line as an event.
        phases: further phases to have a line for each time.
        facts: further facts to measure wherever there is a line and they are known.
        **bound: further keys for each line of a file, such as run_id or rank.

    Raises:
        ValueError: a bound key is one of the log's own, or the path is that of a compressed file.
    """

    def __init__(
        self,
        to: str | PathLike[str] | Any,
        *,
        phases: Iterable[Phase] = (),
        facts: Iterable[str] = (),
        **bound: object,
    ) -> None:
        self.path = Path(to) if isinstance(to, (str, PathLike)) else None
        if self.path is None and not callable(getattr(to, "info", None)):
            raise TypeError(f"log={to!r:.80}: give a path, or a logger of structlog, structlog.get_logger()")
        if self.path is not None and self.path.suffix == ".gz":
            raise ValueError(f"{self.path}: a compressed log can be read, but not written; compress it afterwards")
        if taken := sorted(bound.keys() & (KEYS | HEADER_KEYS)):
            raise ValueError(f"{', '.join(taken)}: a log has keys of its own with these names, bind others")
        self.phases = tuple(phases)
        self.at: Sequence[Phase] = tuple(dict.fromkeys((*ALWAYS, *self.phases)))
        self.needs: Set[str] = frozenset(facts)
        self._logger: Any = None if self.path else to
        self._bound = bound
        self._form = canonical if self.path is None or bound else orjson.dumps
        self._file: BinaryIO | None = None
        self._safe = 0  # so many lines are with the operating system

    # ------------------------------------------------------------------- what the interpreter calls

    def wrap_workload(self, workload: Workload, state: State) -> Workload:
        self._sensors = workload.sensors
        self._recording = Recording(workload)
        self._continuation = Continuation() if self.path is None else continuation(self.path, state)
        return self._recording.as_workload()

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        before = self._continuation
        self._seq, self._digest, self._safe = before.seq, before.digest, before.seq
        self._facts_at = {
            phase: frozenset({"batch_size"}).union(self.needs, *(c.needs for c in callbacks if phase in c.at))
            for phase in Phase
        }
        header = header_of(
            state, callbacks, phases=self.phases, facts=self.needs, sensors=self._sensors, versions=versions()
        )
        try:
            self._info = (self._logger or self._to_file(before)).info
            self._write(HEADER, {**header, **before.said()})
            self._flush()
        except OSError as error:
            raise self._incomplete(error) from error

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        line = line_of(state, answers)
        facts: Mapping[str, float] = state.facts
        wanted = self._facts_at[state.phase]
        if not facts.keys() <= wanted:  # what only a progress bar asked for would differ from run to run
            facts = {name: value for name, value in facts.items() if name in wanted}
        line["facts"] = numbers(facts)
        if self._recording.course:
            line["course"] = self._recording.take()
        try:
            self._write(EVENT[state.phase], line)
            if state.phase in FLUSHED_AT:
                self._flush(for_good=state.phase in FINAL)
            elif answers and any(command.last for answer in answers.values() for command in answer.commands):
                self._flush(for_good=True)  # a checkpoint is no use without the log that leads there
        except OSError as error:
            raise self._incomplete(error) from error

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    # ------------------------------------------------------------------------------------- how

    def _write(self, event: str, line: dict[str, Json]) -> None:
        body = self._form({"seq": self._seq, **line, "event": event})
        self._digest = digest(self._digest, body)
        if self._form is canonical:
            self._info(event, seq=self._seq, **line, digest=self._digest)
        else:  # nobody else has a word in it: what the digest was made of is what is written
            end = len(body) - len(event) - len(b',"event":""}')
            self._info(event, rendered=b'%b,"digest":"%b"%b' % (body[:end], self._digest.encode(), body[end:]))
        self._seq += 1

    def _to_file(self, before: Continuation) -> Any:
        assert self.path is not None
        self._file = self.path.open("ab", buffering=1 << 16)
        if before.torn:
            self._file.truncate(before.size)
        if before.unended:
            self._file.write(b"\n")
        bare = structlog.wrap_logger(
            structlog.BytesLogger(cast("BinaryIO", _Unflushed(self._file))),
            processors=[_rendered],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            context_class=dict,
            cache_logger_on_first_use=True,
        )
        return bare.bind(**self._bound)

    def _flush(self, *, for_good: bool = False) -> None:
        if self._file is not None:
            self._file.flush()
            if for_good:
                os.fsync(self._file.fileno())
        self._safe = self._seq

    def _incomplete(self, error: OSError) -> LogError:
        safe = f"its first {self._safe} lines are written" if self._safe else "nothing is written"
        return LogError(f"the log is incomplete, {safe} ({error.strerror or error})", path=str(self.path))


class Recording(WorkloadProxy):
    """Notes what the workload answers, as far as the course of the machine depends on it."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._fetch, self._fetch_valid, self._step = workload.fetch, workload.fetch_valid, workload.step
        self.course: list[list[Any]] = []

    @property
    def interrupt(self) -> str | None:
        return self.wrapped.interrupt

    @interrupt.setter
    def interrupt(self, name: str | None) -> None:
        self._note(self.wrapped.interrupt)  # the machine has acted on it
        self.wrapped.interrupt = name

    def fetch(self, *state: State) -> int | None:
        size = self._fetch(*state)
        self._note(size)
        return size

    def fetch_valid(self, *state: State) -> int | None:
        size = self._fetch_valid(*state)
        self._note(size)
        return size

    def step(self, *state: State) -> bool:
        stepped = self._step(*state)
        if not stepped:
            self._note(HELD_BACK)
        return stepped

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        in_one_go = self.wrapped.fused(operations)
        if in_one_go is None or Operation.STEP not in operations:
            return None  # one by one, so that each is noted

        def step() -> Outcome:
            stepped = in_one_go()
            if not stepped:
                self._note(HELD_BACK)
            return stepped

        return step

    def take(self) -> list[list[Any]]:
        """What happened since this was asked last."""
        course, self.course = self.course, []
        return course

    def _note(self, what: int | str | None) -> None:
        if self.course and self.course[-1][0] == what:
            self.course[-1][1] += 1
        else:
            self.course.append([what, 1])


class _Unflushed:
    """A file that structlog flushes after each line, and that does not mind."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write

    def flush(self) -> None:
        """It is flushed once an epoch."""


def _rendered(_: object, __: str, event: Any) -> bytes:
    return event["rendered"] if "rendered" in event else orjson.dumps(event)


def versions() -> dict[str, str]:
    """The versions of what a training depends on, as far as they are installed; nothing is imported for it."""
    found = {"python": sys.version.split()[0]}
    for name in ("fsm-train", "attrs", "structlog", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # pragma: no cover - all of them are dependencies
            continue
    return found
