"""The first difference of two logs, and of what kind it is.

Rule of this file: what the world said is compared before what was decided on it, so that a decision is
called different only where it was made on the same grounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import attrs

from ..core.phase import Phase
from ..core.state import COUNTERS
from ..encoding import Json
from .entries import Entry, entries
from .lines import ALWAYS, HEADER
from .replayer import said

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
        kind: "plan"; "callbacks" (which there are, their settings, when they are consulted); "facts"
            (what the world said: batches, losses, metrics, signals, the hyper-parameters to begin
            with); or "decisions" (made on the same facts).
        what: the name of what differs: of a callback, a fact, a field.
        lines: the numbers of the lines in both files; None where a log has ended.
        phase: where the machine stood in the first of them.
        epoch, batch, iteration, step: the counters there.
        a, b: what stands in each log.
        then: the first difference in what happened, where the headers differ.
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
        where = f"{self.phase} (epoch {self.epoch}, batch {self.batch}, step {self.step})"
        numbers = " and ".join("the end" if line is None else f"line {line}" for line in self.lines)
        text = f"{self.kind}, {self.what}: {said(self.a)} against {said(self.b)}, at {where}, {numbers}"
        return text if self.then is None else f"{text}\nwhat happened then: {self.then}"


def diff(a: str | PathLike[str], b: str | PathLike[str]) -> Difference | None:
    """The first difference of two trainings, or None if there is none.

    Versions of packages and whatever is bound to a logger make no difference, and neither does a
    phase that only one of both has lines for.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=1)], log="other.jsonl")
    >>> difference = diff("run.jsonl", "other.jsonl")
    >>> difference.kind, difference.what, difference.then.kind, difference.then.epoch
    ('callbacks', 'early_stopping', 'decisions', 2)

    Raises:
        LogError: one of the logs cannot be read.
        OSError: so with the file.
    """
    calls_a, calls_b = _calls(a), _calls(b)
    while True:
        one, other = next(calls_a, None), next(calls_b, None)
        if one is None and other is None:
            return None
        if one is None or other is None:
            header = (one or other or ("",))[0]
            assert isinstance(header, Entry)
            both = (header.number if one else None, header.number if other else None)
            return _at(
                header, "decisions", "call of run", both, "goes on" if one else None, "goes on" if other else None
            )
        (header_a, lines_a), (header_b, lines_b) = one, other
        shared = _phases(header_a) & _phases(header_b)
        first = _of_headers(header_a, header_b)
        then = _of_lines(_only(lines_a, shared), _only(lines_b, shared))
        if first is not None:
            return attrs.evolve(first, then=then)
        if then is not None:
            return then


def _calls(path: str | PathLike[str]) -> Iterator[tuple[Entry, Iterator[Entry]]]:
    """Each call of `run`: its header, and its lines. The lines are to be gone through before the next call."""
    stream = (entry for entry in entries(Path(path)) if entry.counts)
    header = next(stream, None)
    while header is not None:
        following: list[Entry] = []
        yield header, _until_header(stream, following)
        header = following[0] if following else None


def _until_header(stream: Iterator[Entry], following: list[Entry]) -> Iterator[Entry]:
    for entry in stream:
        if entry.event == HEADER:
            following.append(entry)
            return
        yield entry


def _phases(header: Entry) -> set[str]:
    """The phases that have lines."""
    return {
        *(phase.value for phase in ALWAYS),
        *header.body["phases"],
        *(phase for spec in header.body["callbacks"] for phase in spec["at"]),
    }


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


def _at(entry: Entry, kind: Kind, what: str, lines: tuple[int | None, int | None], a: Json, b: Json) -> Difference:
    body: Mapping[str, Any] = entry.body.get("start", entry.body)
    counters = {name: body.get(name, 0) for name in ("epoch", "batch", "iteration", "step")}
    return Difference(kind, what, lines, entry.event, **counters, a=a, b=b)


def _of_headers(a: Entry, b: Entry) -> Difference | None:
    lines = (a.number, b.number)
    start_a, start_b = a.body["start"], b.body["start"]
    if start_a.get("plan") != start_b.get("plan"):
        return _at(a, "plan", "plan", lines, start_a.get("plan"), start_b.get("plan"))
    specs_a = {str(spec["name"]): spec for spec in a.body["callbacks"]}
    specs_b = {str(spec["name"]): spec for spec in b.body["callbacks"]}
    for name in dict.fromkeys((*specs_a, *specs_b)):
        one, other = specs_a.get(name), specs_b.get(name)
        if one != other:
            return _at(a, "callbacks", name, lines, *_only_what_differs(one, other))
    for name in (*COUNTERS, "hyper", "metrics", "history", "has_valid"):
        if start_a.get(name) != start_b.get(name):
            return _at(a, "facts", name, lines, start_a.get(name), start_b.get(name))
    return None


def _only_what_differs(one: Json, other: Json) -> tuple[Json, Json]:
    """Of two declarations with the same settings but for some, those; else which of them there is."""
    if one is None or other is None:
        return one and "is there", other and "is there"
    if one["params"].keys() == other["params"].keys() and one["params"] != other["params"]:
        names = [name for name in one["params"] if one["params"][name] != other["params"][name]]
        return {name: one["params"][name] for name in names}, {name: other["params"][name] for name in names}
    names = [name for name in one if one[name] != other.get(name)]
    return {name: one[name] for name in names}, {name: other.get(name) for name in names}


def _of_lines(lines_a: Iterator[Entry], lines_b: Iterator[Entry]) -> Difference | None:
    while True:
        a, b = next(lines_a, None), next(lines_b, None)
        if a is None and b is None:
            return None
        if a is None or b is None:
            entry = a or b
            assert entry is not None
            lines = (a.number if a else None, b.number if b else None)
            return _at(entry, "decisions", "end", lines, a and a.event, b and b.event)
        if (found := _of_line(a, b)) is not None:
            return found


def _of_line(a: Entry, b: Entry) -> Difference | None:
    lines = (a.number, b.number)
    if a.course != b.course:
        return _at(a, "facts", "course", lines, a.course, b.course)
    if a.event != b.event:
        return _at(a, "decisions", "phase", lines, a.event, b.event)
    for name in dict.fromkeys((*a.facts, *b.facts)):
        if name in a.facts and name in b.facts and a.facts[name] != b.facts[name]:
            return _at(a, "facts", name, lines, a.facts[name], b.facts[name])
    measured = a.event in (Phase.VALID_END.value, Phase.EPOCH_END.value)
    if measured and a.body["metrics"] != b.body["metrics"]:
        then, now = a.body["metrics"], b.body["metrics"]
        names = [name for name in dict.fromkeys((*then, *now)) if then.get(name) != now.get(name)]
        return _at(a, "facts", names[0], lines, then.get(names[0]), now.get(names[0]))
    if a.body.get("error") != b.body.get("error"):
        return _at(a, "facts", "error", lines, a.body.get("error"), b.body.get("error"))
    then, now = a.body.get("answers", {}), b.body.get("answers", {})
    for name in dict.fromkeys((*then, *now)):
        if then.get(name) != now.get(name):
            return _at(a, "decisions", name, lines, then.get(name), now.get(name))
    for name in dict.fromkeys((*a.body, *b.body)):
        if a.body.get(name) != b.body.get(name):
            return _at(a, "decisions", name, lines, a.body.get(name), b.body.get(name))
    return None
