"""Reads a log as records, for use in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import attrs

from ..core.phase import Flag, Phase
from ..core.state import Counters, Hyper, Plan
from ..encoding import Json, decode, flags
from .entries import entries
from .entry import Entry
from .lines import HEADER, decode_counters, decode_hyper, decode_numbers, decode_plan


@attrs.frozen
class Header:
    """The first line of a call of `run`.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(), epochs=2, seed=0), log="run.jsonl")
    >>> header = next(read_log("run.jsonl"))
    >>> header.plan
    Plan(epochs=2, max_steps=None, seed=0)

    Attributes:
        number: the number of the line in the file, from 1.
        seq: the number of the line in the log, from 0.
        schema: the version of the format.
        versions: the versions of the installed packages, by name.
        plan: how long to train.
        callbacks: the declarations of each callback: name, factory, params, at, needs, every, order.
        phases, facts: the further phases and facts that were given to `EventLog`.
        start: the first control state, as JSON. Its `history` has the epochs that no line before it has; where lines
            before it have some, `held` is their number.
        continues: the `seq` of the line after which the training continues; None if it is a new training.
        gap: whether the log has no line of the state from which the training continues.
        bound: the keys that were bound to the logger.
        superseded: whether a later call of `run` replaces this line.
        digest: the digest of this line and all before it.
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
    """One phase of a training. The counters are those of a `State`.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(valid_loss=0.5), epochs=1), log="run.jsonl")
    >>> *_, last = read_log("run.jsonl")
    >>> last.phase, last.metrics["valid_loss"]
    (<Phase.DONE: 'done'>, 0.5)

    Attributes:
        number: the number of the line in the file, from 1.
        seq: the number of the line in the log, from 0.
        phase: the phase.
        flags: the flags after the answers.
        facts: the measured values, by name.
        metrics: the metrics of the last epoch or validation.
        hyper: the hyper-parameters after the answers.
        answers: the answers by callback, without the fields that change nothing; memories and commands are JSON.
        course: what happened since the line before, as pairs (event, count). An event is a batch as what it counts,
            None for the end of the data, "held back" for a step that was not applied, or the name of a signal.
        player: the one whose turn it is, or was the last in this epoch; "" without turns.
        reason: why the training stops or was suspended; "" otherwise.
        error: the error of a training that failed; "" for others.
        bound: the keys that were bound to the logger.
        superseded: whether a later call of `run` replaces this line.
        digest: the digest of this line and all before it.
    """

    number: int
    seq: int
    phase: Phase
    flags: Flag
    facts: Mapping[str, float]
    metrics: Mapping[str, float]
    hyper: Mapping[str, Hyper]
    answers: Mapping[str, Mapping[str, Json]]
    course: tuple[tuple[float | str | None, int], ...]
    player: str
    reason: str
    error: str
    bound: Mapping[str, Json]
    superseded: bool
    digest: str


def read_log(path: str | PathLike[str], *, superseded: bool = False) -> Iterator[Header | Line]:
    """The records of a log, one after the other. Memory does not grow with the log.

    A log has a `Header` for each call of `run`, followed by its `Line`s. Where a training was resumed from a
    checkpoint, the lines after that checkpoint are superseded and left out.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(valid_loss=[1.0, 0.5]), epochs=2), log="run.jsonl")
    >>> for line in read_log("run.jsonl"):
    ...     if isinstance(line, Line) and line.phase is Phase.EPOCH_END:
    ...         print(line.epoch, line.metrics["valid_loss"])
    1 1.0
    2 0.5

    Args:
        path: the path of the log; one that ends in .gz is decompressed.
        superseded: yield the superseded records too; their attribute `superseded` is True.

    Raises:
        LogError: a line is damaged; the error has its number. A last line that was cut short is left out instead.
        OSError: the file cannot be read.
    """
    for entry in entries(Path(path)):
        if entry.counts or superseded:
            yield record_of(entry)


def record_of(entry: Entry) -> Header | Line:
    """The entry as a record."""
    return _header(entry) if entry.event == HEADER else _line(entry)


def _header(entry: Entry) -> Header:
    body: dict[str, Any] = entry.body
    return Header(
        number=entry.number,
        seq=entry.seq,
        schema=body["schema"],
        versions=dict(body["versions"]),
        plan=decode_plan(body["start"]),
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
    answers, reason, error = body.get("answers"), body.get("reason"), body.get("error")
    return Line(
        **decode_counters(body),
        number=entry.number,
        seq=entry.seq,
        phase=_PHASES[entry.event],
        flags=flags(body["flags"]),
        facts=decode_numbers(entry.facts),
        metrics=decode_numbers(body["metrics"]),
        hyper=decode_hyper(body["hyper"]),
        answers={name: _answer(answer) for name, answer in answers.items()} if answers else {},
        course=tuple((what, times) for what, times in entry.course) if entry.course else (),
        player=body.get("player", ""),
        reason=decode(reason) if reason else "",
        error=decode(error) if error else "",
        bound=entry.bound,
        superseded=not entry.counts,
        digest=entry.digest,
    )


_PHASES = {phase.value: phase for phase in Phase}


def _answer(answer: dict[str, Any]) -> Mapping[str, Json]:
    return {key: _DECODERS[key](value) if key in _DECODERS else value for key, value in answer.items()}


_DECODERS: Mapping[str, Callable[[Any], Any]] = {"flags": flags, "hyper": decode_hyper, "reason": decode}
