"""Where the time of a training goes: torch's profiler, with the operations of the machine as named ranges.

Rule of this file: what is profiled is done as without it, to the last bit.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .core.arguments import check_path
from .core.checks import check_possible, is_whole
from .core.phase import Operation
from .core.state import State
from .core.table import Outcome
from .core.transition import Command, Transition
from .core.workload import Workload
from .sinks.base import Recorder
from .worlds.proxy import WorkloadProxy

_OPERATIONS = frozenset(operation.value for operation in Operation)
_PREFIX = "fsm_train."
_WARM = 10  # batches before those that are profiled, where only their number is given

_logger = logging.getLogger("fsm_train")


def profiled(
    path: str | PathLike[str] = "trace.json", *, steps: tuple[int, int] | range | int = (10, 20), **settings: Any
) -> Profiled:
    """Profile some batches of a training, and write a trace: a sink, `run(…, sinks=[profiled("trace.json")])`.

    The ranges in it are called "fsm_train.forward", "fsm_train.backward", …, as the operations of the machine;
    "fsm_train.read" measures facts, "fsm_train.carry_out ClipGradNorm" is what a callback asked for, and a batch is
    "fsm_train.batch". The file opens in Perfetto (ui.perfetto.dev) and in chrome://tracing, and `table()` of the sink
    says which operation took the time. The weights are the same as without it; the time of the batches within is not,
    since each operation is done by itself.

    >>> from fsm_train import Scripted, run, start
    >>> import json, tempfile, pathlib
    >>> trace = pathlib.Path(tempfile.mkdtemp()) / "trace.json"
    >>> final = run(start(Scripted(batches=8), epochs=1), sinks=[profiled(trace, steps=(2, 4))])
    >>> events = json.loads(trace.read_text())["traceEvents"]
    >>> sum(event.get("name") == "fsm_train.backward" for event in events)
    2

    Args:
        path: the file to write, once the last of these batches, or the training, is over. A trace that is there is
            replaced; of another file, and of a place where none can be written, a run says so before it begins.
        steps: the first training batch of this call of `run`, counted from 0, and the one before which it ends; a range
            says the same, and a number that many from batch 10. Let it begin after the first few, which allocate and
            compile. A training that ends before that is said in a warning.
        settings: of torch.profiler.profile, such as `record_shapes`, `profile_memory`, `with_stack`.

    Raises:
        TypeError: the path is none, or torch knows no such setting.
        ValueError: there is no batch between the two, or no file can have this path.
    """
    check_path(path, "the path of profiled", "profiled('trace.json')")
    check_possible("path", path, "trace.json")
    settings.setdefault("activities", _activities())
    profile(**settings)  # refuses what it does not know
    return Profiled(Path(fspath(path)), _first_and_end(steps), settings)


def _first_and_end(steps: object) -> tuple[int, int]:
    given = steps
    if is_whole(given):
        given = (_WARM, _WARM + given)
    elif isinstance(given, range) and given.step == 1:
        given = (given.start, given.stop)
    first, end = given if isinstance(given, (tuple, list)) and len(given) == 2 else (None, None)
    if not (is_whole(first, 0) and is_whole(end, 1) and first < end):
        raise ValueError(f"steps={steps!r}: give the first batch and the one before which it ends, such as (10, 20)")
    return first, end


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


class Profiled(Recorder):
    """The sink that `profiled` makes."""

    draws = False

    def __init__(self, path: Path, steps: tuple[int, int], settings: Mapping[str, Any]) -> None:
        self.path = path
        self.steps = steps
        self.settings = settings
        self.profiler: profile | None = None
        self.batches = 0
        self._failure: Exception | None = None
        self._took: tuple[tuple[str, int, float], ...] = ()  # of each range its name, how often, and milliseconds

    def table(self) -> str:
        """Where the time went, once the profile is over: a line for each operation, the longest first.

        >>> from fsm_train import Scripted, run, start
        >>> import tempfile, pathlib
        >>> sink = profiled(pathlib.Path(tempfile.mkdtemp()) / "trace.json", steps=(2, 4))
        >>> final = run(start(Scripted(batches=8), epochs=1), sinks=[sink])
        >>> sink.table().splitlines()[0].split()
        ['operation', 'times', 'ms', 'each']

        Returns:
            Milliseconds on the CPU. What waits for a device is in the operation that waits. A batch holds all of its
            operations but the fetch.

        Raises:
            RuntimeError: no batch was profiled yet.
        """
        if not self._took:
            raise RuntimeError(f"nothing was profiled yet: the training has to come to batch {self.steps[0]}")
        width = max(len("operation"), *(len(name) for name, _, _ in self._took))
        rows = (f"{name:<{width}}  {times:>5}  {took / times:>9.3f}" for name, times, took in self._took)
        return "\n".join([f"{'operation':<{width}}  {'times':>5}  {'ms each':>9}", *rows])

    def wrap_workload(self, workload: Workload, state: State) -> Workload:
        _check_place(self.path)
        self.batches, self._failure = 0, None
        return _Ranges(workload, self).as_workload()

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        """What callbacks answered is in the event log."""

    def begin_batch(self) -> None:
        """A batch is to be fetched: begin or end with it, if it is the one. What fails is raised by `close`."""
        first, end = self.steps
        try:
            if self.batches == first and self.profiler is None:
                self.profiler = profile(**self.settings)
                self.profiler.start()
            elif self.batches == end:
                self._end()
        except Exception as error:  # of a full disk, say: no reason to end a training
            self.profiler, self._failure = None, error
        self.batches += 1

    def close(self) -> None:
        """End the profile, if one is under way, and say what became of it."""
        first, _ = self.steps
        if 0 < self.batches <= first:
            _logger.warning(
                f"profiled: no batch was profiled, since the training ended after {self.batches} of them, and the "
                f"first to profile is batch {first}: write profiled(…, steps=(0, {self.batches}))"
            )
        self._end()
        if self._failure is not None:
            raise self._failure

    def _end(self) -> None:
        profiler, self.profiler = self.profiler, None
        if profiler is None:
            return
        profiler.stop()
        self._took = _longest_first(profiler)
        with TemporaryDirectory() as folder:
            # There, because torch takes a backslash in a name for a folder.
            made = Path(folder, "trace.json")
            profiler.export_chrome_trace(str(made))
            if not made.exists():  # torch says so on standard error alone
                raise OSError(f"torch could not write the trace to {folder}: is the disk full?")
            part = _part(self.path)
            try:
                shutil.copyfile(made, part)
                part.replace(self.path)  # so that a file is there whole, or as it was
            finally:
                part.unlink(missing_ok=True)


def _check_place(path: Path) -> None:
    """Make the folder of a trace, and refuse a place where none can be written.

    Raises:
        ValueError: what is there is no trace.
        OSError: there cannot be a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if not path.is_file():
            raise ValueError(f"{path} is no file: give profiled the path of one, such as {path / 'trace.json'}")
        with path.open("rb") as file:
            begin = file.read(200)
        if begin and b"schemaVersion" not in begin:
            raise ValueError(f"{path} is no trace of torch's profiler, and is not written over: give another path")
    part = _part(path)
    part.touch()
    part.unlink()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def _longest_first(profiler: profile) -> tuple[tuple[str, int, float], ...]:
    """Of each range of the machine its name, how often it was, and the milliseconds of all of them."""
    ranges = [
        (event.key.removeprefix(_PREFIX), event.count, event.cpu_time_total / 1000)
        for event in profiler.key_averages()
        if event.key.startswith(_PREFIX)
    ]
    return tuple(sorted(ranges, key=lambda each: -each[2]))


class _Ranges(WorkloadProxy):
    """A workload each operation of which is a range, while its sink profiles."""

    def __init__(self, workload: Workload, sink: Profiled) -> None:
        super().__init__(workload)
        self.sink = sink
        self._batch: record_function | None = None

    @property
    def metric_names(self) -> Set[str] | None:
        return self.wrapped.metric_names

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name not in _OPERATIONS or "sink" not in self.__dict__:
            return found

        def in_range(*given: State) -> Any:
            with self._range(name):
                return found(*given)

        return in_range

    def fetch(self, *state: State) -> float | None:
        self._end_batch()
        self.sink.begin_batch()
        with self._range("fetch"):
            size = self.wrapped.fetch(*state)
        if size is None:
            self.sink.batches -= 1  # an epoch is over
        elif self.sink.profiler is not None:
            self._batch = record_function(f"{_PREFIX}batch")
            self._batch.__enter__()  # type: ignore[no-untyped-call]
        return size

    def finish(self, state: State) -> None:
        self._end_batch()
        self.wrapped.finish(state)

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        with self._range("read"):
            return self.wrapped.read(names, state)

    def carry_out(self, command: Command, state: State) -> None:
        with self._range(f"carry_out {type(command).__name__}"):
            self.wrapped.carry_out(command, state)

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        """One by one while it is profiled, so that each is seen; a compiled step is one range."""
        fused = self.wrapped.fused(operations)
        if fused is None or Operation.FETCH in operations:
            return None
        if self.wrapped.informed & {*operations}:
            return fused
        methods: list[tuple[str, Callable[[], Outcome]]] = [(op.value, getattr(self, op.value)) for op in operations]

        def in_ranges() -> Outcome:
            if self.sink.profiler is None:
                return fused()
            if getattr(self.wrapped, "whole_step", None) is not None:
                with self._range("compiled step"):
                    return fused()
            outcome = None
            for name, method in methods:
                try:
                    outcome = method() or outcome
                except Exception as error:
                    error.add_note(f"The operation was {name}.")
                    raise
            return outcome

        return in_ranges

    def _range(self, name: str) -> AbstractContextManager[object]:
        return nullcontext() if self.sink.profiler is None else record_function(f"{_PREFIX}{name}")

    def _end_batch(self) -> None:
        if self._batch is not None:
            self._batch.__exit__(None, None, None)
            self._batch = None
