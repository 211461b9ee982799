"""The tables around a training that a person watches: what is trained and who looks at it, and what came of it.

Rule of this file: pure functions from records to lines, which fit the width that they are given.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import attrs

from ..callbacks.directions import Direction, direction_of
from ..callbacks.monitoring import is_better
from ..core.model_part import ModelPart
from ..core.phase import FINAL, Phase
from ..core.representation import cut, middle_out
from ..core.state import State
from ..core.values import EMPTY
from ..wording import duration, escaped, short_number
from .overview import Measurement, Overview

MOST_PARTS = 12
"""The most parts of a model that are listed; of more, the first and the last."""

COSTS = {"loss": "a number read from the device", "grad_norm": "the norm of all gradients, read from the device"}
"""What it costs to measure a fact, each time. What is read for one batch is read in one transfer."""

LEAST_WIDTH = 20
"""The least width of a column whose text is wrapped."""


@attrs.frozen
class BestWithin:
    """The best value of a metric in validations that were not the end of an epoch.

    Attributes:
        value: the value.
        epoch: the index of the epoch.
        step: how many steps had been taken.
    """

    value: float
    epoch: int
    step: int


def beginning(parts: Sequence[ModelPart], overview: Overview, width: int) -> Iterator[str]:
    """What is trained, who looks where, and what is measured for that: up to three tables, an empty line after each.

    >>> from fsm_train.core.phase import Phase
    >>> for line in beginning([], Overview({"clip_grad_norm": (Phase.STEP_BEGIN,)}), width=80):
    ...     print(line)
    watched by      at
    clip_grad_norm  step_begin
    <BLANKLINE>

    Args:
        parts: of the model.
        overview: of the run.
        width: the most characters of a line.
    """
    for table in (
        _parts(parts, width),
        _aligned(_watchers(overview.watchers), width),
        _aligned(_measured(overview.measured), width),
    ):
        if table:
            yield from table
            yield ""


def end(
    state: State, overview: Overview, seconds: float, width: int, within: Mapping[str, BestWithin] = EMPTY
) -> Iterator[str]:
    """The best of what was monitored, and where to find what was written, a line each; what there is not is left out.

    Args:
        state: the last one.
        overview: of the run.
        seconds: how long this call of `run` took.
        width: the most characters of a line.
        within: the best values of validations within an epoch.
    """
    rows = [("best", best) for best in _best(state, overview, within)]
    if state.elapsed:
        rows.append(("time", f"{duration(seconds)} in this call of run, {duration(state.elapsed + seconds)} in all"))
    rows += [("log", overview.log)] if overview.log else []
    rows += [("checkpoints", folder) for folder in overview.folders]
    before = ""
    for name, text in rows:
        line = f"{name if name != before else '':<11}  {escaped(text)}"
        yield line if name in ("log", "checkpoints") else cut(line, width)  # a path is to be copied: it is never cut
        before = name


def _aligned(rows: Sequence[Sequence[str]], width: int, right: Set[int] = frozenset()) -> list[str]:
    """The rows as lines of columns; what is too wide in the last one stands on further lines.

    Args:
        rows: the first one is the header; there is nothing where it stands alone.
        width: the most characters of a line.
        right: the columns that are aligned to the right.
    """
    if len(rows) < 2:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    lines = []
    for row in rows:
        *texts, last = (
            cell.rjust(size) if column in right else cell.ljust(size)
            for column, (cell, size) in enumerate(zip(row, widths, strict=True))
        )
        first, *more = textwrap.wrap(last, max(width - indent, LEAST_WIDTH), drop_whitespace=not right) or [""]
        lines += [cut("  ".join([*texts, first]).rstrip(), width), *(cut(" " * indent + line, width) for line in more)]
    return lines


def _parts(parts: Sequence[ModelPart], width: int) -> list[str]:
    """A row for each part with its parameters, and one for all; a single part is said in words elsewhere."""
    if len(parts) < 2:
        return []
    rows = [
        (escaped(part.name or "(its own)"), part.kind, _count(part.parameters, part.lazy), f"{part.trained:,}")
        for part in parts
    ]
    every = _count(sum(part.parameters for part in parts), sum(part.lazy for part in parts))
    trained = f"{sum(part.trained for part in parts):,}"
    header = ("part", "", "parameters", "trained")
    first, *lines, last = _aligned([header, *rows, ("all", "", every, trained)], width, right={2, 3})
    return [first, *middle_out(lines, MOST_PARTS), last]


def _count(parameters: int, lazy: int) -> str:
    """The number of parameters, with those that have no size yet.

    >>> _count(1000, 0), _count(1000, 2), _count(0, 2)
    ('1,000', '1,000 + 2 lazy', '2 lazy')
    """
    numbers = [f"{parameters:,}"] * bool(parameters or not lazy) + [f"{lazy} lazy"] * bool(lazy)
    return " + ".join(numbers)


def _watchers(watchers: Mapping[str, Sequence[Phase]]) -> list[tuple[str, str]]:
    """A row for each watcher; a final phase is no place at which a training stops."""
    places = {who: [phase.value for phase in phases if phase not in FINAL] for who, phases in watchers.items()}
    return [("watched by", "at"), *((escaped(who), ", ".join(at)) for who, at in places.items() if at)]


def _measured(measured: Iterable[Measurement]) -> list[tuple[str, str, str]]:
    """A row for each fact and whom it is measured for."""
    rows = [(escaped(each.fact), _cost(each), f"{escaped(each.who)}{_how_often(each)}") for each in measured]
    return [("measured", "each time it costs", "for"), *rows]


def _cost(measured: Measurement) -> str:
    return "a call of your sensor" if measured.sensor else COSTS.get(measured.fact, "nothing")


def _how_often(measured: Measurement) -> str:
    if measured.every > 1:
        return f", every {measured.every}"
    return f", every {measured.interval:g}s" if measured.interval else ""


def best_within(best: Mapping[str, BestWithin], state: State, monitors: Mapping[str, str]) -> Mapping[str, BestWithin]:
    """The best values so far, with those of a validation that ends here, if it is within an epoch.

    Args:
        best: by the name of a metric, before this validation.
        state: at VALID_END.
        monitors: what is monitored, as in an `Overview`.
    """
    if state.batches_over:
        return best
    new = {
        name: BestWithin(value, state.epoch, state.step)
        for name, direction in _directions(state, monitors).items()
        if is_better(value := state.metrics.get(name, math.nan), best[name].value if name in best else None, direction)
    }
    return {**best, **new}


def _directions(state: State, monitors: Mapping[str, str]) -> dict[str, Direction]:
    """By the name of a metric that is monitored, or else of the loss, which way is better, where that is known."""
    usual = next((name for name in ("valid_loss", "train_loss") if name in state.metrics), "")
    given = {name: mode or direction_of(name) for name, mode in (monitors or {usual: ""}).items()}
    return {name: "max" if mode == "max" else "min" for name, mode in given.items() if mode}


def _best(state: State, overview: Overview, within: Mapping[str, BestWithin]) -> Iterator[str]:
    """The best value of each metric that is monitored, at the end of an epoch or in a validation within one."""
    for name, direction in _directions(state, overview.monitors).items():
        best: float | None = None
        where = ""
        for epoch, metrics in enumerate(state.history, 1):
            if is_better(value := metrics.get(name, math.nan), best, direction):
                best, where = value, f"at the end of epoch {epoch} of {len(state.history)}"
        inside = within.get(name)
        if inside is not None and is_better(inside.value, best, direction):
            best, where = inside.value, f"after step {inside.step}, within epoch {inside.epoch + 1}"
        if best is not None:
            yield f"{name} {short_number(best)}, {where}"
