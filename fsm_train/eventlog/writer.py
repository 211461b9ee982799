"""Writes the log: a sink that gets every consulted phase. Bound keys and loggers of a program go through structlog.

Rules of this file: the log depends on the training alone, not on other sinks or the clock, so that equal trainings
have equal logs. A log that cannot be written is one warning and a note on the last state; the training continues.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections.abc import Iterable, Mapping, Sequence, Set
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from ..core.callback import Callback
from ..core.phase import FINAL, Phase
from ..core.state import State
from ..core.transition import Transition
from ..core.workload import Workload
from ..encoding import Json, numbers
from ..locks import HeldError, Lock, take
from ..sinks.base import Recorder
from .append import Continuation, find_continuation
from .course import Course, CourseRecorder, course_of
from .encoder import AnswerEncoder, LineEncoder, asks_for_a_checkpoint, line_of_file
from .errors import LogError
from .history import header_lines
from .lines import (
    ALWAYS,
    EVENT,
    HEADER_KEYS,
    HISTORY_KEYS,
    KEYS,
    answers_of,
    canonical,
    digest,
    header_of,
    line_of,
    with_digest,
)
from .versions import versions

FLUSHED_AT = frozenset({Phase.EPOCH_END, *FINAL})
"""The phases after whose line the file is flushed; after a final phase it is also synced to the disk."""

LINES_AT_ONCE = 32
"""Lines that are encoded together: between the kernels of a training, each alone would take three times as long."""

BYTES_AT_ONCE = 1 << 15
"""As many bytes can wait to be encoded, and as many encoded for the file: a kill takes no more than both."""


Waiting = tuple[State, bytes, Course]
"""What a line is made of: the state, the answers to it as JSON, and the course since the line before."""

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
        TypeError: `to` is neither a path nor a logger, or a bound key has a value that JSON has no form for.
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
        for name, value in bound.items():
            try:
                orjson.dumps(value)
            except TypeError as error:
                raise TypeError(
                    f"{name}={value!r:.80} cannot be written as JSON ({error}): give text or numbers"
                ) from None
        self.phases = tuple(phases)
        self.at: Sequence[Phase] = tuple(dict.fromkeys((*ALWAYS, *self.phases)))
        self.needs: Set[str] = frozenset(facts)
        self.draws = self.path is None  # a processor of the program's own may draw
        self._key = f"logger {id(self)}" if self.path is None else os.path.realpath(self.path)
        self._logger: Any = None if self.path else to
        self._emit: Any = None  # takes a line that is not written as it is encoded
        self._bound = bound
        self._file: BinaryIO | None = None
        self._lock: Lock | None = None
        self._by_structlog = self.path is None or bool(bound)
        self._serialize = canonical if self._by_structlog else orjson.dumps
        self._waiting: list[Waiting] = []  # lines that are not encoded yet
        self._lines_at_once = 1
        self._waiting_bytes = 0  # of the answers in them
        self._encoder = LineEncoder()
        self._answers = AnswerEncoder()
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
            if self._logger is None:
                self._open_file(before)
            else:
                self._emit = self._logger.info
            for event, line in header_lines({**header, **before.header_fields()}):
                self._write(event, line)
            self._flush()
        except OSError as error:
            raise self._incomplete_log(error) from error

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        if os.getpid() != self._pid:
            raise LogError("this process was forked from the one that writes the log", path=str(self.path or ""))
        course = self._recording.take_course()
        flushed = state.phase in FLUSHED_AT
        try:
            if self._by_structlog:
                flushed = flushed or asks_for_a_checkpoint(answers)
                self._write(EVENT[state.phase], self._line_of(state, answers_of(answers), course_of(course)))
            else:
                # What a program could still change, the answers, is encoded now; a state stays what it is.
                encoded, asks = self._answers.encode(answers)
                flushed = flushed or asks
                self._waiting.append((state, encoded, course))
                self._waiting_bytes += len(encoded)
                if flushed or len(self._waiting) >= self._lines_at_once or self._waiting_bytes >= BYTES_AT_ONCE:
                    self._write_waiting()
            if flushed:
                self._flush(sync=state.phase is not Phase.EPOCH_END)
        except OSError as error:
            raise self._incomplete_log(error) from error

    def close(self) -> None:
        if _in_use.get(self._key) is self:
            del _in_use[self._key]
        try:
            if self._file is not None:
                with self._file:
                    self._write_waiting()
        finally:
            self._file = None
            self._waiting.clear()
            self._answers = AnswerEncoder()
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

    def _facts_of(self, state: State) -> Json:
        """The facts of a line as JSON.

        Facts for other sinks, such as a progress bar, are not among them: these differ from run to run.
        """
        facts: Mapping[str, float] = state.facts
        logged = self._facts_at[state.phase]
        for name in facts:
            if name not in logged:
                return numbers({name: value for name, value in facts.items() if name in logged})
        return numbers(facts)

    def _line_of(self, state: State, answers: Json, course: Sequence[Json]) -> dict[str, Json]:
        """The line without what makes it one of a file."""
        line = line_of(state, answers)
        line["facts"] = self._facts_of(state)
        if course:
            line["course"] = course
        return line

    def _write(self, event: str, line: dict[str, Json]) -> None:
        body = self._serialize({"seq": self._seq, **line, "event": event})
        self._digest = digest(self._digest, body)
        if self._file is None or self._bound:
            self._emit(event, seq=self._seq, **line, digest=self._digest)
        else:  # no processor changes the line, so the bytes that the digest is made of are written
            self._file.write(with_digest(body, self._digest, event))
        self._seq += 1

    def _write_waiting(self) -> None:
        """Encode the lines that wait, and write them. After an interrupt, those that are not encoded still wait."""
        encode, facts_of, seq = self._encoder.encode, self._facts_of, self._seq
        digits = self._digest.encode()
        encoded: list[tuple[bytes, bytes]] = []
        try:
            for state, answers, course in self._waiting:
                body = encode(seq, state, answers, facts_of(state), course_of(course))
                digits, line = line_of_file(digits, body, state.phase)
                encoded.append((digits, line))
                seq += 1
        finally:
            self._waiting = self._waiting[len(encoded) :]
            self._waiting_bytes = 0
            if encoded:
                self._digest = encoded[-1][0].decode()
                self._seq += len(encoded)
                lines = [line for _, line in encoded]
                self._lines_at_once = max(1, min(LINES_AT_ONCE, BYTES_AT_ONCE // max(map(len, lines))))
                cast("BinaryIO", self._file).write(b"".join(lines))

    def _open_file(self, before: Continuation) -> None:
        assert self.path is not None
        self._file = self.path.open("ab", buffering=BYTES_AT_ONCE)
        self._has_name = os.fstat(self._file.fileno()).st_nlink > 0  # what a shell gives as /dev/stdout may have none
        if before.torn:
            self._file.truncate(before.size)
        if before.missing_newline:
            self._file.write(b"\n")
        if self._bound:
            from .bound_keys import file_logger  # which imports structlog: a log without further keys does without

            self._emit = file_logger(self._file, self._bound).info

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
