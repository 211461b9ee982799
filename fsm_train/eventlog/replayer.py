"""Deciding everything again from what was recorded, and finding the first decision that differs.

Rule of this file: a replay is a run. The interpreter is the same code, on a workload that says again what
the real one said; here only the lines that it would have written are compared with those that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any, cast

import attrs
import orjson

from ..core.callback import Callback, memory_classes
from ..core.errors import CallbackError, ConflictError
from ..core.merge import consult, decide
from ..core.phase import Flag, Phase
from ..core.state import COUNTERS, State
from ..core.transition import Transition
from ..core.values import Facts
from ..encoding import CannotDecodeError, Json
from ..interpreter import iterate
from ..sinks.base import Recorder
from .entries import Entry
from .errors import EndOfLogError, LogError, OutOfStepError
from .from_header import declared, rebuilt
from .lines import ALWAYS, EVENT, Said, callback_of, line_of, numbers_in, start_of, state_in
from .recorded import Recorded


@attrs.frozen
class Divergence:
    """The first place where something else would have been decided.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> divergence = replay("run.jsonl", [early_stopping(patience=1)]).divergence
    >>> divergence.callback, divergence.phase, divergence.epoch
    ('early_stopping', 'epoch_end', 2)

    Attributes:
        line: of the file, from 1.
        phase: where the machine stood, in the log.
        epoch, batch, iteration, step: the counters there.
        callback: whose answer differs; "" if it is something else that does.
        what: what differs: "answer", "phase", or the name of a field.
        recorded, decided: as it stands in the log, and as it is decided now.
    """

    line: int
    phase: str
    epoch: int
    batch: int
    iteration: int
    step: int
    callback: str
    what: str
    recorded: Json
    decided: Json

    def __str__(self) -> str:
        who = f", callback {self.callback!r}" if self.callback else f", {self.what}"
        where = f"line {self.line}, {self.phase} (epoch {self.epoch}, batch {self.batch}, step {self.step})"
        return f"{where}{who}: recorded {said(self.recorded)}, decided {said(self.decided)}"


@attrs.frozen
class Replayed:
    """What came of a replay.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> replayed = replay("run.jsonl")
    >>> replayed.ok, replayed.state.phase, replayed.divergence
    (True, <Phase.DONE: 'done'>, None)

    Attributes:
        ok: whether everything was decided as it was recorded.
        state: the last state that agrees with the log.
        divergence: the first that does not, if there is one.
        lines: so many lines agree.
    """

    ok: bool
    state: State
    divergence: Divergence | None
    lines: int


def replay(log: str | PathLike[str], callbacks: Iterable[Callback[Any]] | None = None) -> Replayed:
    """Decide everything again from the recorded facts, without the model.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> from fsm_train.callbacks import early_stopping
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=9), [early_stopping(patience=2)], log="run.jsonl")
    >>> replayed = replay("run.jsonl")
    >>> replayed.ok, replayed.state.epoch
    (True, 3)

    Args:
        log: the path of a log, also of a compressed one (.gz).
        callbacks: those of the training. If none are given, they are made from the header, as far
            as they are of the library.

    Raises:
        LogError: the log cannot be read, or its callbacks cannot be made from it.
        OSError: the file cannot be read.
    """
    given = None if callbacks is None else tuple(callbacks)
    path = fspath(log)
    recorded = Recorded(log)
    last: State | None = None
    lines = 0
    while (header := recorded.next_header) is not None:
        used = rebuilt(header, path) if given is None else given
        state = recorded.start(last, {callback.name: memory_classes(callback) for callback in used})
        if (elsewhere := _elsewhere(last, header)) is not None:
            return Replayed(False, cast("State", last), elsewhere, lines)
        call = _Call(recorded, used)
        call.run(state)
        lines += call.lines
        last = call.last or attrs.evolve(state, workload=None)
        if call.divergence is not None:
            return Replayed(False, last, call.divergence, lines)
    return Replayed(True, cast("State", last), None, lines)


def _elsewhere(last: State | None, header: Entry) -> Divergence | None:
    """Where a training goes on from another state than the log led to."""
    if last is None:
        return None
    then, now = header.body["start"], start_of(last)
    if header.body.get("gap"):
        return divergence(header, "", "gap", "the log does not lead to where this call goes on", None)
    for name in (*COUNTERS, "hyper", "metrics", "history"):
        if then.get(name) != now[name]:
            return divergence(header, "", name, then.get(name), now[name])
    for name, memory in now["memory"].items():
        if name in then["memory"] and then["memory"][name] != memory:
            return divergence(header, name, "memory", then["memory"][name], memory)
    return None


def divergence(entry: Entry, callback: str, what: str, recorded: Json, decided: Json) -> Divergence:
    """A divergence at this line."""
    body = entry.body.get("start", entry.body)
    return Divergence(
        entry.number,
        entry.event,
        **{name: body.get(name, 0) for name in ("epoch", "batch", "iteration", "step")},
        callback=callback,
        what=what,
        recorded=recorded,
        decided=decided,
    )


def said(value: Json) -> str:
    """A value from a log, for a person."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


class _Call(Recorder):
    """One call of `run`, replayed: watches, and compares each look with its line."""

    def __init__(self, recorded: Recorded, callbacks: tuple[Callback[Any], ...]) -> None:
        header = recorded.header.body
        self.recorded = recorded
        self.callbacks = callbacks
        self.divergence: Divergence | None = None
        self.trouble: LogError | None = None
        self.failed: Entry | None = None  # the line of a training that failed, where none can be decided
        self.over = False  # whether nothing is compared any more
        self.last: State | None = None
        self.unrecorded: State | None = None
        self.lines = 0
        self.said = Said()
        now = sorted(map(repr, (declared(callback_of(callback)) for callback in callbacks)))
        then = sorted(map(repr, (declared(spec) for spec in header["callbacks"])))
        self.exact = now == then  # the same looks must have lines; otherwise those without a word may lack one
        phases = {Phase(name) for name in header["phases"]}
        if not self.exact:
            phases |= {Phase(name) for spec in header["callbacks"] for name in spec["at"]}
        self.at = tuple(dict.fromkeys((*ALWAYS, *phases)))
        self.needs = frozenset(header["facts"])

    def run(self, state: State) -> None:
        """Go through this call of `run`, to its end or to where it differs.

        Raises:
            LogError: the log turned out to be unreadable.
        """
        error: Exception | None = None
        try:
            for now in iterate(state, self.callbacks, sinks=[self], at=self.at):
                if self.over:
                    break
                if now.workload is not None:  # the last one
                    self.last = attrs.evolve(now, workload=None)
        except (OutOfStepError, CallbackError, ConflictError) as raised:
            error = raised
        except LogError as unreadable:
            getattr(unreadable, "__notes__", []).clear()  # they tell of a model that is not there
            raise
        if self.trouble is not None:
            raise self.trouble
        if self.divergence is not None:
            if isinstance(error, CallbackError):
                self.divergence = self._raised(error)
            return
        if self.failed is None:
            self._check_end(error)
        if self.failed is not None:
            self._check_failure(self.failed)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        if self.over or self.recorded.asked_beyond:
            return
        try:
            self._compare(state, answers)
        except LogError as error:
            self.trouble, self.over = error, True

    def _compare(self, state: State, answers: Mapping[str, Transition]) -> None:
        entry = self.recorded.upcoming()
        if entry is None:
            self.over = True  # the log ends here
            return
        ours = line_of(state, answers, self.said)
        if entry.body == ours and entry.event == EVENT[state.phase] and self.recorded.reached():
            self.recorded.pass_line()
            self.last = state
            self.lines += 1
            return
        if not self.exact and not answers and state.phase not in ALWAYS and self.recorded.line_at(state) is None:
            return
        self.over = True
        if entry.body.get("error") and not state.error:
            self.failed = entry
            if all(entry.body.get(name) == ours[name] for name in COUNTERS):
                self.unrecorded = state  # a command of this very look may have failed, after it was decided
        else:
            self.divergence = self._difference(entry, state, ours)

    def _difference(self, entry: Entry, state: State, ours: dict[str, Json]) -> Divergence:
        then, now = entry.body.get("answers", {}), ours.get("answers", {})
        if entry.event != state.phase.value:
            if now and not self.exact:  # where nobody looked, somebody would have had something to say
                name = next(iter(now))
                return divergence(entry, name, "answer", None, now[name])
            return divergence(entry, "", "phase", entry.event, state.phase.value)
        order = [callback.name for callback in self.callbacks]
        for name in sorted({*then, *now}, key=lambda name: order.index(name) if name in order else -1):
            if then.get(name) != now.get(name):
                return divergence(entry, name, "answer", then.get(name), now.get(name))
        for name in dict.fromkeys((*ours, *entry.body)):
            if entry.body.get(name) != ours.get(name):
                return divergence(entry, "", name, entry.body.get(name), ours.get(name))
        return divergence(entry, "", "course", entry.course, "less of it")

    def _raised(self, error: CallbackError) -> Divergence:
        """The divergence that a callback made by raising."""
        entry = self.recorded.upcoming()
        assert entry is not None
        then = entry.body.get("answers", {}).get(error.callback) if entry.event == error.phase.value else None
        return divergence(entry, error.callback, "answer", then, f"raised: {error.__cause__ or error}")

    def _check_end(self, error: Exception | None) -> None:
        """Whether the log ends where the replay does."""
        entry = self.recorded.upcoming()
        if isinstance(error, OutOfStepError) and not isinstance(error, EndOfLogError):
            self.divergence = divergence(entry or self.recorded.header, "", "course", error.found, error.asked)
        elif entry is not None and entry.body.get("error"):
            self.failed = entry
        elif entry is not None:
            asked = error.asked if isinstance(error, EndOfLogError) else "the end"
            self.divergence = divergence(entry, "", "phase", entry.event, asked)

    def _check_failure(self, entry: Entry) -> None:
        """What was decided at the TEARDOWN of a training that failed.

        Where a training fails is a fact; that a callback failed is none, and would have come again.
        """
        error = entry.body["error"]
        if str(error).startswith(("CallbackError: ", "ConflictError: ")):
            self.divergence = divergence(entry, "", "error", error, None)
            return
        if entry.event != Phase.TEARDOWN.value or self.last is None:
            return
        for last in (self.last, self.unrecorded):
            if last is not None:
                decided, ours = self._decided_at_teardown(entry, last)
                if ours == entry.body:
                    self.last = decided
                    self.lines += 1
                    return
        self.divergence = self._difference(entry, decided, ours)

    def _decided_at_teardown(self, entry: Entry, last: State) -> tuple[State, dict[str, Json]]:
        """What is decided at the TEARDOWN of this line, when `last` was the last state before; and that as a line."""
        try:
            then = state_in(entry.body, Phase.TEARDOWN, last)
            facts = Facts({"batch_size": last.fetched, **numbers_in(entry.facts)})
        except (CannotDecodeError, KeyError) as error:
            raise LogError(str(error), path=self.recorded.path, line=entry.number) from error
        state = attrs.evolve(
            then, flags=Flag.NONE, facts=facts, hyper=last.hyper, metrics=last.metrics, reason=then.error
        )
        answers = consult([c for c in self.callbacks if Phase.TEARDOWN in c.at], state)
        decided, _ = decide(state, answers, {callback.name: i for i, callback in enumerate(self.callbacks)})
        return decided, line_of(decided, {callback.name: answer for callback, answer in answers})
