"""A log as text and as JSON: its plan, callbacks, epochs and end.

Rule of this file: the text that it gives is escaped, because names and reasons come from the log.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import attrs

from ..core.phase import FINAL, Phase
from ..core.state import Hyper, Plan
from ..encoding import Json, flag_names, numbers
from ..wording import as_typed, ending, escaped, learning_rate, pluralize, reached_limit, short_number
from .epochs import Epoch, Epochs
from .errors import LogError
from .lines import decode_hyper
from .reader import Header, Line, read_log

MAX_WIDTH = 60
"""About the largest number of characters in a curve."""

_BARS = "▁▂▃▄▅▆▇█"
_INDENT = " " * 11


@attrs.frozen
class LogSummary:
    """What is shown of a log. Its size in memory does not grow with the log.

    Attributes:
        header: that of the last call of `run`.
        calls: how many calls of `run` count.
        epochs: the finished epochs.
        last: the last line; None if there are only headers.
        lines: how many lines count, with headers.
        superseded: how many calls of `run` are superseded, as a whole or in part.
    """

    header: Header
    calls: int
    epochs: Epochs
    last: Line | None
    lines: int
    superseded: int

    @property
    def ending(self) -> str:
        """How the training ended, in a sentence; not escaped."""
        return ending_of(self.header, self.last)


def ending_of(header: Header, last: Line | None) -> str:
    """How a training with this header and this last line ended, in a sentence; not escaped."""
    if last is None:
        return "nothing has happened yet"
    where = f"after {pluralize(last.epoch, 'epoch')} and {pluralize(last.step, 'step')}"
    if last.phase not in FINAL:
        return f"under way, or cut short: the log ends at {last.phase.value}, {where}"
    limit = reached_limit(header.plan, last.epoch, last.step)
    if last.phase is Phase.DONE and limit and not last.reason:
        return f"done: all of the {limit} of the plan"
    return ending(last.phase.value, where, last.reason)


def summarize(path: str | PathLike[str]) -> LogSummary:
    """Read a log and keep what is shown of it.

    Raises:
        LogError, OSError: it cannot be read.
    """
    header: Header | None = None
    epochs = Epochs()
    last: Line | None = None
    calls = lines = superseded = 0
    rates = _Rates()
    for record in read_log(path, superseded=True):
        if record.superseded:
            superseded += isinstance(record, Header)
            continue
        lines += 1
        if isinstance(record, Header):
            header = record
            calls += 1
            rates.see(record.start["step"], decode_hyper(record.start["hyper"]))
            continue
        last = record
        rates.see(record.step, record.hyper)
        if record.phase is Phase.EPOCH_BEGIN:
            rates.begin_epoch()
        if record.phase is Phase.EPOCH_END:
            epochs.append(Epoch(record.epoch, record.step, rates.end_epoch(), record.metrics))
    if header is None:
        raise LogError("no call of run in it counts", path=fspath(path))
    return LogSummary(header, calls, epochs, last, lines, superseded)


class _Rates:
    """The learning rate of each epoch, from the lines of a log: hyper-parameters change only at a line.

    So the steps between two lines are taken with the rate of the first of them.
    """

    def __init__(self) -> None:
        self._step = 0
        self._now: Hyper | None = None
        self._begun: Hyper | None = None
        self._used: Hyper | None = None

    def see(self, step: int, hyper: Mapping[str, Hyper]) -> None:
        """A line: the steps so far, and the hyper-parameters after it."""
        if step > self._step:
            self._used = self._now
        self._now, self._step = hyper.get("lr"), step

    def begin_epoch(self) -> None:
        """The line that was seen last begins an epoch."""
        self._begun = self._now

    def end_epoch(self) -> Hyper | None:
        """The line that was seen last ends an epoch: the rate of its last step, or without a step at its beginning."""
        rate, self._used = self._begun if self._used is None else self._used, None
        return rate


# ----------------------------------------------------------------------------------------- a log


def as_json(summary: LogSummary) -> dict[str, Json]:
    """The plan, the callbacks, and the final phase with its reason; `epochs_as_json` gives the epochs."""
    header, last = summary.header, summary.last
    return {
        "plan": attrs.asdict(header.plan),
        "callbacks": header.callbacks,
        "phase": None if last is None else last.phase.value,
        "reason": "" if last is None else last.reason,
        "lines": summary.lines,
    }


def epochs_as_json(summary: LogSummary) -> Iterator[dict[str, Json]]:
    """Each epoch with its metrics."""
    for epoch in summary.epochs:
        yield {"epoch": epoch.epoch, "step": epoch.step, **numbers(epoch.metrics)}


def as_text(summary: LogSummary) -> Iterator[str]:
    """The lines of a page: the plan, the callbacks, a row per epoch, a curve per metric, and how it ended."""
    return map(escaped, _page(summary))


def _page(summary: LogSummary) -> Iterator[str]:
    header = summary.header
    yield f"plan       {format_plan(header.plan)}"
    for i, spec in enumerate(header.callbacks):
        yield ("callbacks  " if i == 0 else _INDENT) + format_callback(spec)
    if summary.calls > 1 or summary.superseded:
        superseded = f", {pluralize(summary.superseded, 'call')} superseded" if summary.superseded else ""
        yield f"runs       {pluralize(summary.calls, 'call')} of run{superseded}"
    if summary.epochs:
        yield ""
        yield from _table(summary.epochs)
        yield ""
        yield from _curves(summary.epochs)
    yield ""
    yield summary.ending


def format_plan(plan: Plan) -> str:
    """What a plan says, by name; what it leaves open is left out. Not escaped."""
    return ", ".join(f"{name} {value}" for name, value in attrs.asdict(plan).items() if value is not None)


def format_callback(spec: Mapping[str, Json]) -> str:
    """A callback as the call that makes it; one that no factory made by its name and phases. Not escaped."""
    given = {name: value for name, value in spec["params"].items() if value is not None}  # None is what nobody types
    name, params = spec["name"], ", ".join(f"{name}={as_typed(value)}" for name, value in given.items())
    factory = spec["factory"].rpartition(".")[2]
    if not factory and not params:
        return f"{name}, at {', '.join(spec['at'])}"
    return f"{factory or name}({params})" + (f" as {name!r}" if factory and factory != name else "")


def _table(epochs: Epochs) -> Iterator[str]:
    """A row for each epoch, under a header."""
    names = epochs.names
    header = ["epoch", "step", *names, "lr"]
    widths = [*map(len, header)]
    for epoch in epochs:
        widths = [max(width, len(cell)) for width, cell in zip(widths, _row(epoch, names), strict=True)]
    for cells in itertools.chain([header], (_row(epoch, names) for epoch in epochs)):
        yield "  ".join(map(str.rjust, cells, widths))


def _row(epoch: Epoch, names: Sequence[str]) -> list[str]:
    metrics = [short_number(epoch.metrics[name]) if name in epoch.metrics else "-" for name in names]
    return [str(epoch.epoch), str(epoch.step), *metrics, learning_rate(epoch.rate) or "-"]


def _curves(epochs: Epochs) -> Iterator[str]:
    """For each metric its name, its curve, and its first and last value."""
    names = epochs.names
    width = max(map(len, names), default=0)
    sampled = epochs.sampled(MAX_WIDTH)
    for name in names:
        values = sampled[name]
        yield f"{name:<{width}}  {curve(values)}  {short_number(values[0])} to {short_number(values[-1])}"


def curve(values: Sequence[float]) -> str:
    """A character for each value, as high as the value is in its range; "!" for a value that is not finite.

    >>> curve([3.0, 2.0, 1.0, float("nan")])
    '█▅▁!'
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_height(value, low, high) for value in values)


def _height(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "!"
    # Halved, because the difference of two large numbers can overflow.
    share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
    return _BARS[round(share * (len(_BARS) - 1))]


# ---------------------------------------------------------------------------------------- a line


def line_as_text(line: Line) -> str:
    """A line of a log as one line: phase, counters, measurements, and what the callbacks answered."""
    where = f"epoch {line.epoch}  batch {line.batch}  step {line.step}" + (f"  {line.player}" if line.player else "")
    # Metrics stay in the state until the next epoch ends: they are new only here.
    metrics = line.metrics.items() if line.phase is Phase.EPOCH_END else ()
    facts = [(name, value) for name, value in line.facts.items() if name != "batch_size"]
    numbers = [f"{name} {short_number(value)}" for name, value in (*metrics, *facts)]
    answers = [f"{name}: {_answer(answer)}" for name, answer in line.answers.items()]
    reason = [line.reason] if line.phase in FINAL and line.reason else []
    return escaped("  ".join([f"{line.phase.value:<12}", where, *numbers, *answers, *reason]))


def _answer(answer: Mapping[str, Any]) -> str:
    """The flags, hyper-parameters and commands of an answer; its reason if it has none, and "noted" for a memory."""
    parts = [flag_names(answer["flags"])] if "flags" in answer else []
    parts += [f"{name}={value}" for name, value in answer.get("hyper", {}).items()]
    parts += [str(command.get("$")) for command in answer.get("commands", ())]
    return " ".join(parts) or str(answer.get("reason", "")) or "noted"
