"""Writes the log: a sink that gets every consulted phase. Bound keys and loggers of a program go through structlog.

Rules of this file: the log depends on the training alone, not on other sinks or the clock, so that equal trainings
have equal logs. A log that cannot be written is one warning and a note on the last state; the training continues.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import stat
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
from ..locks import HeldError, Lock, take
from ..sinks.base import Recorder
from ..worlds.proxy import WorkloadProxy
from .append import Continuation, find_continuation
from .errors import LogError
from .history import header_lines
from .lines import ALWAYS, EVENT, HEADER_KEYS, HELD_BACK, HISTORY_KEYS, KEYS, canonical, digest, header_of, line_of

FLUSHED_AT = frozenset({Phase.EPOCH_END, *FINAL})
"""The phases after whose line the file is flushed; after a final phase it is also synced to the disk."""


_ONE_RUN = "and a log holds one run at a time: give another path, or let that run end first"

_in_use: dict[str, EventLog] = {}
"""The logs that a run of this process is writing: by the real path of the file, or by the object."""


class EventLog(Recorder):
    """Writes a training as JSON lines. README.md in this folder describes the format.

    The first line of a call of `run` is the header: plan, callbacks with their settings, first state. There is a line
    for each phase at which a callback is consulted, and for each SETUP, EPOCH_BEGIN, VALID_END, EPOCH_END, TEARDOWN
    and final phase. Batch sizes, steps that were held back and signals are in the next line, run-length encoded, so
    that a training without callbacks per batch writes a few lines an epoch.

    An existing file is continued. If the training continues too, the lines after the state from which it continues are
    superseded; if it is a new training, all lines before it are.

    >>> from fsm_train import run, start
    >>> from fsm_train.eventlog import read_log
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(), epochs=1), log=EventLog("run.jsonl", run_id=7))
    >>> header, *lines = read_log("run.jsonl")
    >>> [line.phase.value for line in lines]
    ['setup', 'epoch_begin', 'epoch_end', 'teardown', 'done']

    Args:
        to: a path; or a bound logger of structlog, which gets each line as an event.
        phases: further phases that have a line each time.
        facts: further facts, measured at each line where they are known.
        **bound: further keys for each line of a file, such as run_id or rank.

    Raises:
        TypeError: `to` is neither a path nor a logger.
        LogError: the file cannot be looked at; when a run begins: it cannot be written, or another run is writing it.
        ValueError: a bound key is a key of the log, or the path is a folder or ends in .gz.

    Attributes:
        path: the path of the file; None if a logger gets the lines.
        phases: the further phases.
        at, needs: the phases and facts of this sink, see `Sink`.
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
        if self.path is not None and _is_folder(self.path):
            raise ValueError(
                f"log={str(to)!r} is a folder: name a file in it, such as {str(self.path / 'run.jsonl')!r}"
            )
        if self.path is not None and self.path.suffix == ".gz":
            raise ValueError(f"{self.path}: a compressed log can be read, but not written; compress it afterwards")
        if taken := sorted(bound.keys() & (KEYS | HEADER_KEYS | HISTORY_KEYS)):
            raise ValueError(f"{', '.join(taken)}: a log has keys of its own with these names, bind others")
        self.phases = tuple(phases)
        self.at: Sequence[Phase] = tuple(dict.fromkeys((*ALWAYS, *self.phases)))
        self.needs: Set[str] = frozenset(facts)
        self.draws = self.path is None  # a processor of the program's own may draw
        self._key = f"logger {id(self)}" if self.path is None else os.path.realpath(self.path)
        self._logger: Any = None if self.path else to
        self._bound = bound
        self._serialize = canonical if self.path is None or bound else orjson.dumps
        self._file: BinaryIO | None = None
        self._lock: Lock | None = None
        self._flushed = 0  # the number of lines that the operating system has

    @property
    def log_path(self) -> Path | None:
        """Where `progress` says that the log is: the same path, by a name that no other sink has for another file."""
        return self.path

    # ---------------------------------------------------------------- called by the interpreter

    def wrap_workload(self, workload: Workload, state: State) -> Workload:
        self._sensors = workload.sensors
        self._recording = CourseRecorder(workload)
        self._refuse_second_run()
        try:
            self._hold_file()
            self._continuation = Continuation() if self.path is None else find_continuation(self.path, state)
        except OSError as error:
            raise LogError(f"the log cannot be written ({error.strerror or error})", path=str(self.path)) from error
        return self._recording.as_workload()

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        self._refuse_second_run()
        _in_use[self._key] = self
        self._pid = os.getpid()
        before = self._continuation
        self._seq, self._digest, self._flushed = before.seq, before.digest, before.seq
        self._facts_at = {
            phase: frozenset({"batch_size"}).union(self.needs, *(c.needs for c in callbacks if phase in c.at))
            for phase in Phase
        }
        header = header_of(
            state,
            callbacks,
            phases=self.phases,
            facts=self.needs,
            sensors=self._sensors,
            versions=versions(),
            held=before.held,
        )
        try:
            self._emit = (self._open_file(before) if self._logger is None else self._logger).info
            for event, line in header_lines({**header, **before.header_fields()}):
                self._write(event, line)
            self._flush()
        except OSError as error:
            raise self._incomplete_log(error) from error

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        if os.getpid() != self._pid:
            raise LogError("this process was forked from the one that writes the log", path=str(self.path or ""))
        line = line_of(state, answers)
        facts: Mapping[str, float] = state.facts
        logged = self._facts_at[state.phase]
        if not facts.keys() <= logged:  # facts for other sinks, such as a progress bar, differ from run to run
            facts = {name: value for name, value in facts.items() if name in logged}
        line["facts"] = numbers(facts)
        if self._recording.course:
            line["course"] = self._recording.take_course()
        try:
            self._write(EVENT[state.phase], line)
            if state.phase in FLUSHED_AT:
                self._flush(sync=state.phase in FINAL)
            elif answers and any(command.last for answer in answers.values() for command in answer.commands):
                self._flush(sync=True)  # a checkpoint is no use without the log up to it
        except OSError as error:
            raise self._incomplete_log(error) from error

    def close(self) -> None:
        if _in_use.get(self._key) is self:
            del _in_use[self._key]
        try:
            if self._file is not None:
                file, self._file = self._file, None
                file.close()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _refuse_second_run(self) -> None:
        """Refuse to write the lines of two runs between each other.

        Raises:
            LogError: a run of this process is writing this log.
        """
        if self._key in _in_use:
            gc.collect()  # a loop over iterate that was dropped ends its run when it is collected
        if self._key in _in_use:
            raise LogError(
                f"another run of this process is writing this log, {_ONE_RUN}",
                path=str(self.path or ""),
            )

    # ------------------------------------------------------------------------------- the file

    def _hold_file(self) -> None:
        """Make the file if it is not there, and lock it until the run ends.

        Raises:
            LogError: another process is writing it.
            OSError: it cannot be written.
        """
        if self.path is not None and self.path.is_dir():  # which a checkpoint may have made since
            raise IsADirectoryError(errno.EISDIR, "it is a folder, perhaps that of the checkpoints")
        if self.path is None or (self.path.exists() and not self.path.is_file()):
            return  # a pipe, say
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
            real = Path(os.path.realpath(self.path))
            self._lock = take(real.with_name(f".{real.name}.lock"))
        except HeldError as error:
            raise LogError(f"{error} is writing this log, {_ONE_RUN}", path=str(self.path)) from None

    def _write(self, event: str, line: dict[str, Json]) -> None:
        body = self._serialize({"seq": self._seq, **line, "event": event})
        self._digest = digest(self._digest, body)
        if self._file is None or self._bound:
            self._emit(event, seq=self._seq, **line, digest=self._digest)
        else:  # no processor changes the line, so the bytes that the digest is made of are written
            end = len(body) - len(event) - len(b',"event":""}')
            self._file.write(b'%b,"digest":"%b"%b\n' % (body[:end], self._digest.encode(), body[end:]))
        self._seq += 1

    def _open_file(self, before: Continuation) -> Any:
        assert self.path is not None
        self._file = self.path.open("ab", buffering=1 << 16)
        self._has_name = os.fstat(self._file.fileno()).st_nlink > 0  # what a shell gives as /dev/stdout may have none
        if before.torn:
            self._file.truncate(before.size)
        if before.missing_newline:
            self._file.write(b"\n")
        bare = structlog.wrap_logger(
            structlog.BytesLogger(cast("BinaryIO", _WithoutFlush(self._file))),
            processors=[_render],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            context_class=dict,
            cache_logger_on_first_use=True,
        )
        return bare.bind(**self._bound)

    def _flush(self, *, sync: bool = False) -> None:
        if self._file is not None:
            self._file.flush()
            there = os.fstat(self._file.fileno())
            if self._has_name and not there.st_nlink:
                raise FileNotFoundError(errno.ENOENT, "it was removed while it was written")
            if sync and stat.S_ISREG(there.st_mode):  # and no pipe
                os.fsync(self._file.fileno())
        self._flushed = self._seq

    def leave_to_parent(self) -> None:
        """In a process that was forked: the lines that wait to be written are those of the other process."""
        if self._file is not None:
            os.dup2(nowhere := os.open(os.devnull, os.O_WRONLY), self._file.fileno())
            os.close(nowhere)

    def _incomplete_log(self, error: OSError) -> LogError:
        written = f"its first {self._flushed} lines are written" if self._flushed else "nothing is written"
        return LogError(f"the log is incomplete, {written} ({error.strerror or error})", path=str(self.path))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise LogError(f"the log cannot be written ({error.strerror})", path=str(path)) from error


def _leave_to_parent() -> None:
    for log in _in_use.values():
        log.leave_to_parent()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows forks nothing
    os.register_at_fork(after_in_child=_leave_to_parent)


class CourseRecorder(WorkloadProxy):
    """Wraps a workload and records its course: batches, steps held back, signals. All else is the workload's.

    Attributes:
        course: pairs [event, count] since the last `take_course`.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._fetch, self._fetch_valid, self._step = workload.fetch, workload.fetch_valid, workload.step
        self.course: list[list[Any]] = []

    @property
    def interrupt(self) -> str | None:
        return self.wrapped.interrupt

    @interrupt.setter
    def interrupt(self, name: str | None) -> None:
        self._record(self.wrapped.interrupt)  # the machine has acted on it
        self.wrapped.interrupt = name

    def fetch(self, *state: State) -> float | None:
        size = self._fetch(*state)
        self._record(size)
        return size

    def fetch_valid(self, *state: State) -> float | None:
        size = self._fetch_valid(*state)
        self._record(size)
        return size

    def step(self, *state: State) -> bool:
        stepped = self._step(*state)
        if not stepped:
            self._record(HELD_BACK)
        return stepped

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        run_fused = self.wrapped.fused(operations)
        if run_fused is None or Operation.FETCH in operations:
            return None  # one by one, so that a fetch is recorded
        if Operation.STEP not in operations:
            return run_fused

        def step() -> Outcome:
            stepped = run_fused()
            if not stepped:
                self._record(HELD_BACK)
            return stepped

        return step

    def take_course(self) -> list[list[Any]]:
        """The course since the last call of this method."""
        course, self.course = self.course, []
        return course

    def _record(self, event: float | str | None) -> None:
        if self.course and self.course[-1][0] == event:
            self.course[-1][1] += 1
        else:
            self.course.append([event, 1])


class _WithoutFlush:
    """Wraps a file so that `flush`, which structlog calls after each line, does nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write

    def flush(self) -> None:
        """Nothing to do: `EventLog` flushes the file once an epoch."""


def _render(_: object, __: str, event: Any) -> bytes:
    return orjson.dumps(event)


def versions() -> dict[str, str]:
    """The versions of the packages that a training depends on. None of them is imported for it."""
    installed = {"python": sys.version.split()[0]}
    for name in ("fsm-train", "attrs", "structlog", "torch"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # pragma: no cover - all of them are dependencies
            continue
    return installed
