"""A log, read as records: what a person works with in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import attrs

from ..core.phase import Flag, Phase
from ..core.state import COUNTERS, Counters, Hyper, Plan
from ..encoding import CannotDecodeError, Json, decode, flags
from .entries import Entry, entries
from .errors import LogError
from .lines import HEADER, hyper_in, numbers_in, plan_in


@attrs.frozen
class Header:
    """What a call of `run` began with.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(), epochs=2, seed=0), log="run.jsonl")
    >>> header = next(read_log("run.jsonl"))
    >>> header.plan
    Plan(epochs=2, max_steps=None, seed=0)

    Attributes:
        number: of the line in the file, from 1.
        seq: its number in the log, from 0.
        schema: the version of the format.
        versions: of the packages that were installed.
        plan: how long to train.
        callbacks: what each declared: name, factory, params, at, needs, every, order.
        phases, facts: those that the log was asked for in addition.
        start: the control state, as it stands in the log.
        continues: the `seq` of the line that it goes on from; None if the training began anew.
        gap: whether the log does not lead to where it goes on from.
        bound: keys that somebody bound to the logger.
        superseded: whether it is no part of the history that counts.
        digest: of this line and all before it.
    """

    number: int
    seq: int
    schema: int
    versions: Mapping[str, str]
    plan: Plan
    callbacks: tuple[Mapping[str, Json], ...]
    phases: tuple[str, ...]
    facts: tuple[str, ...]
    start: Mapping[str, Json]
    continues: int | None
    gap: bool
    bound: Mapping[str, Json]
    superseded: bool
    digest: str


@attrs.frozen
class Line(Counters):
    """A look at the training. The counters are those of a `State`.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(valid_loss=0.5), epochs=1), log="run.jsonl")
    >>> *_, last = read_log("run.jsonl")
    >>> last.phase, last.metrics["valid_loss"]
    (<Phase.DONE: 'done'>, 0.5)

    Attributes:
        number: of the line in the file, from 1.
        seq: its number in the log, from 0.
        phase: where the machine stood.
        flags: those that were raised after the answers.
        facts: what was measured.
        metrics: of the last epoch or validation.
        hyper: the hyper-parameters after the answers.
        answers: by callback what it answered, without what it left as it was; memories and commands
            are as they stand in the log.
        course: what happened since the line before, as pairs of what and how often: batches by their
            size, None for the end of the data, "held back", or the name of a signal.
        reason: why it stops, where it does.
        error: what went wrong, in a training that failed.
        bound: keys that somebody bound to the logger.
        superseded: whether it is no part of the history that counts.
        digest: of this line and all before it.
    """

    number: int
    seq: int
    phase: Phase
    flags: Flag
    facts: Mapping[str, float]
    metrics: Mapping[str, float]
    hyper: Mapping[str, Hyper]
    answers: Mapping[str, Mapping[str, Json]]
    course: tuple[tuple[int | str | None, int], ...]
    reason: str
    error: str
    bound: Mapping[str, Json]
    superseded: bool
    digest: str


def read_log(path: str | PathLike[str], *, superseded: bool = False) -> Iterator[Header | Line]:
    """The records of a log, one after the other. Memory does not grow with the log.

    A log holds a `Header` for each call of `run`, and the `Line`s of what happened in it. Where a
    training was resumed, that is the history that counts: a line which comes after the checkpoint
    that was resumed from is left out.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(valid_loss=[1.0, 0.5]), epochs=2), log="run.jsonl")
    >>> for line in read_log("run.jsonl"):
    ...     if isinstance(line, Line) and line.phase is Phase.EPOCH_END:
    ...         print(line.epoch, line.metrics["valid_loss"])
    1 1.0
    2 0.5

    Args:
        path: of the log; one that ends in .gz is uncompressed.
        superseded: give also what is superseded, marked as such.

    Raises:
        LogError: something is wrong with the file, with the number of the line. Only the last line
            may be cut short, and is left out.
        OSError: the file cannot be read.
    """
    for entry in entries(Path(path)):
        if entry.counts or superseded:
            yield record_of(entry, fspath(path))


def record_of(entry: Entry, path: str = "") -> Header | Line:
    """The entry as a record.

    Raises:
        LogError: something in it is not of the form that a log has.
    """
    try:
        return _header(entry) if entry.event == HEADER else _line(entry)
    except (CannotDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LogError(f"it is not of the form that a log has: {error}", path=path, line=entry.number) from error


def _header(entry: Entry) -> Header:
    body: dict[str, Any] = entry.body
    return Header(
        number=entry.number,
        seq=entry.seq,
        schema=body["schema"],
        versions=dict(body["versions"]),
        plan=plan_in(body["start"]),
        callbacks=tuple(dict(spec) for spec in body["callbacks"]),
        phases=tuple(body["phases"]),
        facts=tuple(body["facts"]),
        start=body["start"],
        continues=body.get("continues"),
        gap=body.get("gap", False),
        bound=entry.bound,
        superseded=not entry.counts,
        digest=entry.digest,
    )


def _line(entry: Entry) -> Line:
    body: dict[str, Any] = entry.body
    if wrong := [name for name in COUNTERS if type(body[name]) is not int]:
        raise CannotDecodeError(f"{wrong[0]} is {body[wrong[0]]!r:.40}, and not a whole number")
    return Line(
        number=entry.number,
        seq=entry.seq,
        phase=Phase(entry.event),
        **{name: body[name] for name in COUNTERS},
        flags=flags(body["flags"]),
        facts=numbers_in(entry.facts),
        metrics=numbers_in(body["metrics"]),
        hyper=hyper_in(body["hyper"]),
        answers={name: _answer(answer) for name, answer in body.get("answers", {}).items()},
        course=tuple((what, times) for what, times in entry.course),
        reason=decode(body.get("reason", "")),
        error=decode(body.get("error", "")),
        bound=entry.bound,
        superseded=not entry.counts,
        digest=entry.digest,
    )


def _answer(answer: dict[str, Any]) -> Mapping[str, Json]:
    found = dict(answer)
    if "flags" in found:
        found["flags"] = flags(found["flags"])
    if "hyper" in found:
        found["hyper"] = hyper_in(found["hyper"])
    if "reason" in found:
        found["reason"] = decode(found["reason"])
    return found
