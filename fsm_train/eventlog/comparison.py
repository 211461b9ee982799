"""The first difference of two logs, and of what kind it is.

Rule of this file: facts are compared before the decisions on them, so that two decisions differ only where their
facts are equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import attrs

from ..core.phase import FINAL
from ..core.state import COUNTERS
from ..encoding import Json
from .entries import entries
from .entry import Entry
from .line_difference import Change, Part, first_change, format_json, format_place, place_of
from .lines import HEADER, MEASURED, logged_phases

Kind = Literal["plan", "callbacks", "facts", "decisions"]


@attrs.frozen
class Difference:
    """The first place where two logs differ.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> for loss, log in [(0.5, "one.jsonl"), (0.25, "other.jsonl")]:
    ...     final = run(start(Scripted(loss=loss), epochs=1), log=log)
    >>> difference = diff("one.jsonl", "other.jsonl")
    >>> difference.kind, difference.what, difference.a, difference.b
    ('facts', 'train_loss', 0.5, 0.25)

    Attributes:
        kind: "plan"; "callbacks" (their names, settings and declarations); "facts" (batches, losses, metrics,
            signals, errors, the state at the start); or "decisions" (on equal facts).
        what: the name of the callback, fact or field that differs.
        lines: the numbers of the lines in both files; None where a log has ended.
        phase: the phase of the first of these lines.
        epoch, batch, iteration, step: its counters.
        a, b: the value in each log.
        then: the first difference in the lines after the headers, where the headers differ.
    """

    kind: Kind
    what: str
    lines: tuple[int | None, int | None]
    phase: str
    epoch: int
    batch: int
    iteration: int
    step: int
    a: Json
    b: Json
    then: Difference | None = None

    def __str__(self) -> str:
        numbers = " and ".join("the end" if line is None else f"line {line}" for line in self.lines)
        values = f"{format_json(self.a)} against {format_json(self.b)}"
        place = format_place(self.phase, self.epoch, self.batch, self.step)
        text = f"{self.kind}, {self.what}: {values}, at {place}, {numbers}"
        return text if self.then is None else f"{text}\nwhat happened then: {self.then}"


def diff(a: str | PathLike[str], b: str | PathLike[str]) -> Difference | None:
    """The first difference of two trainings; None if there is none.

    Versions of packages, keys that are bound to a logger, and lines of phases that only one log has are not compared.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=1)], log="other.jsonl")
    >>> difference = diff("run.jsonl", "other.jsonl")
    >>> difference.kind, difference.what, difference.then.kind, difference.then.epoch
    ('callbacks', 'early_stopping', 'decisions', 1)

    Raises:
        LogError: one of the logs cannot be read.
        OSError: one of the files cannot be read.
    """
    for one, other in itertools.zip_longest(_calls(a), _calls(b)):
        if one is None or other is None:
            header = (one or other)[0]
            longer = Change("facts", "call of run", one and "continues", other and "continues")
            return _difference(header, longer, (header.number if one else None, header.number if other else None))
        (header_a, lines_a), (header_b, lines_b) = one, other
        change = first_change(_header_parts(header_a, header_b))
        phases = [{phase.value for phase in logged_phases(header.body)} for header in (header_a, header_b)]
        shared = phases[0] & phases[1]
        then = _first_difference(_only(lines_a, shared), _only(lines_b, shared))
        if change is not None:
            first = _difference(header_a, _settings_only(change), (header_a.number, header_b.number))
            return attrs.evolve(first, then=then)
        if then is not None:
            return then
    return None


def _calls(path: str | PathLike[str]) -> Iterator[tuple[Entry, Iterator[Entry]]]:
    """The header and the lines of each call of `run`. Taking the next call skips the lines that were not taken."""
    number = 0

    def call_number(entry: Entry) -> int:
        nonlocal number
        number += entry.event == HEADER
        return number

    counting = (entry for entry in entries(Path(path)) if entry.counts)
    for _, call in itertools.groupby(counting, call_number):
        lines = iter(call)
        yield next(lines), lines


def _only(lines: Iterator[Entry], phases: set[str]) -> Iterator[Entry]:
    """The lines of these phases; what happened on the way to others is added to the next of them."""
    course: list[list[Any]] = []
    for entry in lines:
        for what, times in entry.course:
            if course and course[-1][0] == what:
                course[-1][1] += times
            else:
                course.append([what, times])
        if entry.event in phases:
            entry.course, course = course, []
            yield entry


def _difference(entry: Entry, change: Change, lines: tuple[int | None, int | None]) -> Difference:
    return Difference(cast("Kind", change.part), change.key, lines, **place_of(entry), a=change.a, b=change.b)


def _header_parts(a: Entry, b: Entry) -> Iterator[Part]:
    """What is compared of two headers, in order."""
    start_a, start_b = a.body["start"], b.body["start"]
    yield Part("plan", start_a, start_b, ("plan",))
    specs_a, specs_b = ({str(spec["name"]): spec for spec in header.body["callbacks"]} for header in (a, b))
    yield Part("callbacks", specs_a, specs_b)
    yield Part("facts", start_a, start_b, (*COUNTERS, "hyper", "metrics"))
    yield from _history_parts(start_a, start_b)
    yield Part("facts", start_a, start_b, ("has_valid", "batches_per_epoch", "players"))


def _history_parts(a: Mapping[str, Json], b: Mapping[str, Json]) -> Iterator[Part]:
    """Of two histories their lengths, and the epochs that both headers have; lines before have the others."""
    length_a, length_b = (len(start["history"]) + start.get("held", 0) for start in (a, b))
    yield Part("facts", {"history": f"{length_a} epochs"}, {"history": f"{length_b} epochs"})
    both = min(len(start["history"]) for start in (a, b))
    yield Part("facts", *({"history": start["history"][len(start["history"]) - both :]} for start in (a, b)))


def _settings_only(change: Change) -> Change:
    """A change of a callback, reduced to the settings or declarations that differ."""
    if change.part != "callbacks":
        return change
    one, other = change.a, change.b
    if one is None or other is None:
        return change._replace(a=one and "is there", b=other and "is there")
    if one["params"].keys() == other["params"].keys() and one["params"] != other["params"]:
        one, other = one["params"], other["params"]
    names = [name for name in one if one[name] != other.get(name)]
    return change._replace(a={name: one[name] for name in names}, b={name: other.get(name) for name in names})


def _first_difference(lines_a: Iterator[Entry], lines_b: Iterator[Entry]) -> Difference | None:
    last = ""
    for a, b in itertools.zip_longest(lines_a, lines_b):
        if a is None or b is None:
            # A log that is cut off has not ended by a decision.
            part = "decisions" if last in _ENDS else "facts"
            ended = Change(part, "end", a and a.event, b and b.event)
            return _difference(a or b, ended, (a.number if a else None, b.number if b else None))
        last = a.event
        if a.event == b.event and a.body == b.body and a.course == b.course and a.facts == b.facts:
            continue
        if (change := first_change(_line_parts(a, b))) is not None:
            return _difference(a, change, (a.number, b.number))
    return None


_ENDS = frozenset(phase.value for phase in FINAL)


def _line_parts(a: Entry, b: Entry) -> Iterator[Part]:
    """What is compared of two lines, in order."""
    yield Part("facts", {"course": a.course}, {"course": b.course})
    yield Part("decisions", {"phase": a.event}, {"phase": b.event})
    yield Part("decisions", a.body, b.body, ("player",))
    yield Part("facts", a.facts, b.facts, [name for name in a.facts if name in b.facts])
    if a.event in MEASURED:
        yield Part("facts", a.body["metrics"], b.body["metrics"])
    yield Part("facts", a.body, b.body, ("error",))
    yield Part("decisions", a.body.get("answers", {}), b.body.get("answers", {}))
    yield Part(
        "facts", a.body, b.body, ("hyper",)
    )  # what no answer set: the optimizer's own, or a hand between two runs
    yield Part("decisions", a.body, b.body)
