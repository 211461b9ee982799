"""A log in words and small pictures, for a terminal.

Rule of this file: whatever comes from a log goes through `escaped` before a person sees it, so that no
name or reason in it can move the cursor, hide a line or set the title of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import attrs

from ..core.phase import FINAL, Phase
from ..encoding import Json
from .reader import Header, Line, read_log

_BARS = "▁▂▃▄▅▆▇█"
LOSSES = ("train_loss", "valid_loss")  # come first
WIDTH = 60
"""So many characters a curve has at most."""


def escaped(text: object) -> str:
    r"""The text with everything that is not a printable character written out, such as \x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


@attrs.define
class Story:
    """What a log tells, epoch by epoch. It grows with the epochs, not with the lines.

    Attributes:
        headers: of the calls of `run` that count.
        epochs: the line of each finished epoch.
        last: the last line.
        lines: so many there are.
        superseded: so many calls of `run` are superseded, or in part.
    """

    headers: list[Header] = attrs.Factory(list)
    epochs: list[Line] = attrs.Factory(list)
    last: Line | None = None
    lines: int = 0
    superseded: int = 0

    def take(self, record: Header | Line) -> None:
        if record.superseded:
            self.superseded += isinstance(record, Header)
            return
        self.lines += 1
        if isinstance(record, Header):
            self.headers.append(record)
            return
        self.last = record
        if record.phase is Phase.EPOCH_END:
            self.epochs.append(record)

    @property
    def ending(self) -> str:
        """How it ended, in a sentence."""
        if self.last is None:
            return "nothing has happened yet"
        line, plan = self.last, self.headers[-1].plan
        where = f"after {_count(line.epoch, 'epoch')} and {_count(line.step, 'step')}"
        if line.phase not in FINAL:
            return f"under way, or cut short: the log ends at {line.phase.value}, {where}"
        if line.reason:
            return f"{line.phase.value} {where}: {line.reason}"
        limits = ((line.epoch, plan.epochs, "epoch"), (line.step, plan.max_steps, "step"))
        for count, limit, noun in limits:
            if line.phase is Phase.DONE and limit is not None and count >= limit:
                return f"done: all of the {_count(limit, noun)} of the plan"
        return f"{line.phase.value} {where}"


def story_of(path: str | PathLike[str]) -> Story:
    """What the log tells.

    Raises:
        LogError, OSError: it cannot be read.
    """
    story = Story()
    for record in read_log(path, superseded=True):
        story.take(record)
    return story


def shown(story: Story) -> list[str]:
    """The log as a page: the plan, the callbacks, the epochs, the curves, and why it ended."""
    header = story.headers[-1]
    plan = ", ".join(f"{name} {value}" for name, value in attrs.asdict(header.plan).items() if value is not None)
    lines = [f"plan       {plan}"]
    for i, spec in enumerate(header.callbacks):
        lines.append(("callbacks  " if i == 0 else " " * 11) + callback_text(spec))
    if len(story.headers) > 1 or story.superseded:
        lost = f", {_count(story.superseded, 'call')} superseded" if story.superseded else ""
        lines.append(f"runs       {_count(len(story.headers), 'call')} of run{lost}")
    if story.epochs:
        lines += ["", *table(story.epochs), "", *curves(story.epochs)]
    return [*lines, "", story.ending]


def callback_text(spec: Mapping[str, Json]) -> str:
    """A callback as the call that makes it."""
    params = ", ".join(f"{name}={_param(value)}" for name, value in spec["params"].items())
    made = spec["factory"].rpartition(".")[2]
    called = f" as {spec['name']!r}" if made and made != spec["name"] else ""
    return (
        f"{made or spec['name']}({params}){called}" if params or made else f"{spec['name']}, at {', '.join(spec['at'])}"
    )


def _param(value: Json) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_param, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        if "$" in value:
            parts = ", ".join(f"{name}={_param(part)}" for name, part in value.items() if name != "$")
            return f"{value['$']}({parts})"
        if "$map" in value:
            return "{" + ", ".join(f"{_param(key)}: {_param(part)}" for key, part in value["$map"]) + "}"
        return str(next(iter(value.values()), ""))
    return repr(value)


def names_of(epochs: Iterable[Line]) -> list[str]:
    """The metrics, the losses first."""
    names = dict.fromkeys(name for line in epochs for name in line.metrics)
    return [*(name for name in LOSSES if name in names), *(name for name in names if name not in LOSSES)]


def table(epochs: Sequence[Line]) -> list[str]:
    """A row for each epoch, under a header."""
    names = names_of(epochs)
    rows = [["epoch", "step", *names, "lr"]] + [_row(line, names) for line in epochs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]


def _row(line: Line, names: Iterable[str]) -> list[str]:
    metrics = [f"{line.metrics[name]:.4g}" if name in line.metrics else "-" for name in names]
    lr: Any = line.hyper.get("lr", ())
    rates = lr if isinstance(lr, tuple) else (lr,)
    shown = "..".join(f"{rate:.4g}" for rate in dict.fromkeys((min(rates), max(rates)))) if rates else "-"
    return [str(line.epoch), str(line.step), *metrics, shown]


def curves(epochs: Sequence[Line]) -> list[str]:
    """A small curve for each metric, from its first to its last value."""
    names = names_of(epochs)
    width = max(map(len, names), default=0)
    found = []
    for name in names:
        values = [line.metrics[name] for line in epochs if name in line.metrics]
        found.append(f"{name:<{width}}  {curve(values)}  {values[0]:.4g} to {values[-1]:.4g}")
    return found


def curve(values: Sequence[float]) -> str:
    """The values as a row of bars, thinned out to what fits on a line; "!" is one that is not finite."""
    step = max(1, math.ceil(len(values) / WIDTH))
    values = [*values[:-1:step], *values[-1:]]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_bar(value, low, high) for value in values)


def _bar(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "!"
    share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
    return _BARS[round(share * (len(_BARS) - 1))]


def line_text(line: Line) -> str:
    """A line of a log, in a line."""
    where = f"epoch {line.epoch}  batch {line.batch}  step {line.step}"
    metrics = [f"{name} {value:.4g}" for name, value in line.metrics.items()] if line.phase is Phase.EPOCH_END else []
    facts = [f"{name} {value:.4g}" for name, value in line.facts.items() if name != "batch_size"]
    answers = [f"{name}: {_said_in_short(answer)}" for name, answer in line.answers.items()]
    reason = [line.reason] if line.phase in FINAL and line.reason else []
    return "  ".join([f"{line.phase.value:<12}", where, *metrics, *facts, *answers, *reason])


def _said_in_short(answer: Mapping[str, Any]) -> str:
    """What an answer asks for; a memory alone is "noted"."""
    parts = []
    if "flags" in answer:
        parts.append("|".join(str(flag.name) for flag in answer["flags"]))
    parts += [f"{name}={value}" for name, value in answer.get("hyper", {}).items()]
    parts += [str(command.get("$")) for command in answer.get("commands", ())]
    return " ".join(parts) or "noted"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
