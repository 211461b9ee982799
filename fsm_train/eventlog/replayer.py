"""Make the recorded decisions again, and find the first that differs.

Rule of this file: it compares lines and decides nothing. A replay is a run on the recorded world (`rerun.py`);
the one decision outside of a run, at TEARDOWN of a training that failed, is made in `failure.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeGuard, cast

import attrs

from ..callbacks.time_limit import with_time_limit
from ..core.arguments import check_path
from ..core.callback import Callback, check_names, memory_classes
from ..core.errors import CallbackError, ConflictError, FactError
from ..core.phase import Phase
from ..core.runs import reasons_agree
from ..core.state import COUNTERS, State
from ..core.transition import Transition
from ..encoding import Json, decode
from .added_fields import as_far_as, without_added_fields
from .entry import Entry
from .errors import EndOfLogError, NotLazyError, OutOfStepError
from .failure import decide_at_teardown
from .from_header import as_recorded, callbacks_from_header, declaration_of
from .line_difference import Change, Part, first_change, format_json, format_place, place_of
from .lines import ALWAYS, EVENT, AnswerCache, callback_of, line_of, logged_phases, start_of
from .recorded import Recorded
from .rerun import Rerun


@attrs.frozen
class Divergence:
    """The first difference between a log and its replay.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> divergence = replay("run.jsonl", [early_stopping(patience=1)]).divergence
    >>> divergence.callback, divergence.phase, divergence.epoch
    ('early_stopping', 'valid_end', 1)

    Attributes:
        line: the number of the line in the file, from 1.
        phase: the phase of that line.
        epoch, batch, iteration, step: its counters.
        callback: the callback whose answer or memory differs; "" if something else differs.
        what: what differs: "answer", "memory", "phase", "course", "gap", or the name of a field.
        recorded, decided: the value in the log, and the value in the replay.
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
        what = f"recorded {format_json(self.recorded)}, decided {format_json(self.decided)}"
        return f"line {self.line}, {format_place(self.phase, self.epoch, self.batch, self.step)}{who}: {what}"


@attrs.frozen
class Replayed:
    """The result of a replay.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> replayed = replay("run.jsonl")
    >>> replayed.ok, replayed.state.phase, replayed.divergence
    (True, <Phase.DONE: 'done'>, None)

    Attributes:
        ok: whether every decision agrees with the log.
        state: the last state that agrees with the log.
        divergence: the first difference; None if there is none.
        lines: the number of lines that agree.
    """

    ok: bool
    state: State
    divergence: Divergence | None
    lines: int


def replay(log: str | PathLike[str], callbacks: Iterable[Callback[Any]] | None = None) -> Replayed:
    """Make every decision again from the recorded facts, without the model.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> from fsm_train.callbacks import early_stopping
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=9), [early_stopping(patience=2)], log="run.jsonl")
    >>> replayed = replay("run.jsonl")
    >>> replayed.ok, replayed.state.epoch
    (True, 3)

    Args:
        log: the path of a log; one that ends in .gz is decompressed.
        callbacks: the callbacks of the training. None makes them from the header, which works for callbacks
            of the library.

    Raises:
        LogError: the log cannot be read, or its callbacks cannot be made from it.
        OSError: the file cannot be read.
    """
    check_path(log, "the log of replay", "replay('run.jsonl', …)")
    given = None if callbacks is None else check_names(callbacks)
    try:
        return _replayed(Recorded(log, lazy=True), given)
    except NotLazyError:  # of a log that no version of this library wrote
        return _replayed(Recorded(log), given)


def _replayed(recorded: Recorded, given: Sequence[Callback[Any]] | None) -> Replayed:
    last: State | None = None
    lines = 0
    while (header := recorded.next_header) is not None:
        specs = {decode(spec["name"]): spec for spec in header.body["callbacks"]}
        used = (
            callbacks_from_header(header, recorded.path)
            if given is None
            else tuple(as_recorded(callback, specs.get(callback.name)) for callback in given)
        )
        state = recorded.start(last, {callback.name: memory_classes(callback) for callback in used})
        used = with_time_limit(used, state.plan)
        if last is not None and (change := _changed_between_calls(last, header)) is not None:
            return Replayed(False, last, _divergence(header, change), lines)
        call = _Replay(recorded, state, used)
        divergence = call.first_divergence()
        recorded.open_lines()
        lines += call.lines
        last = call.last
        if divergence is not None:
            return Replayed(False, last, divergence, lines)
    return Replayed(True, cast("State", last), None, lines)


def _changed_between_calls(last: State, header: Entry) -> Change | None:
    """What differs between the last state of one call of `run` and the start of the next.

    Hyper-parameters may differ: they are read from the optimizer when a call begins, and a person may have set them.
    So may memories after a failure: what was decided in the batch that failed is forgotten.
    """
    if header.body.get("gap"):
        return Change("", "gap", "the log does not lead to where this call continues", None)
    recorded = header.body["start"]
    decided = start_of(last, recorded.get("held", 0))  # the epochs before are in lines that agree
    both = [name for name in decided["memory"] if name in recorded["memory"] and not last.error]
    return first_change(
        (
            Part("", recorded, decided, (*COUNTERS, "metrics", "history")),
            Part("memory", recorded["memory"], as_far_as(decided["memory"], recorded["memory"]), both),
        )
    )


def _divergence(entry: Entry, change: Change) -> Divergence:
    """The divergence at this line. A change in a part with a name is one of a callback."""
    return Divergence(
        entry.number,
        **place_of(entry),
        callback=change.key if change.part else "",
        what=change.part or change.key,
        recorded=change.a,
        decided=change.b,
    )


_DECIDED = ("CallbackError: ", "ConflictError: ")  # failures that callbacks make, and no operation


class _Replay(Rerun):
    """Compares each state with the next line.

    Attributes:
        lines: the number of lines that agree.
    """

    def __init__(self, recorded: Recorded, start: State, callbacks: tuple[Callback[Any], ...]) -> None:
        header = recorded.header
        decided = sorted(map(repr, (declaration_of(callback_of(callback)) for callback in callbacks)))
        logged = sorted(map(repr, map(declaration_of, header.body["callbacks"])))
        # With other declarations, a state at which no callback answers may lack a line.
        self._exact = decided == logged
        at = (*ALWAYS, *map(Phase, header.body["phases"])) if self._exact else logged_phases(header.body)
        super().__init__(recorded, start, at)
        self.needs = frozenset(header.body["facts"])
        self.lines = 0
        self._callbacks = callbacks
        self._divergence: Divergence | None = None
        self._failure: Entry | None = None  # the next line, if the training failed before it
        self._unlogged: State | None = None  # the last state, if the training may have failed while it was logged
        self._cache = AnswerCache()

    def first_divergence(self) -> Divergence | None:
        """Replay this call of `run`, to its end or to where it differs.

        Raises:
            LogError: the log cannot be read.
        """
        error = self.rerun(self._callbacks)
        if self._failed_before(error):
            self._divergence = None
        if self._divergence is not None:
            return self._divergence_by(error) if isinstance(error, CallbackError) else self._divergence
        if self._failure is None:
            entry = self.recorded.next_line()
            if entry is None or not entry.body.get("error") or _is_out_of_step(error):
                return self._difference_at_end(entry, error)
            self._failure = entry
        return self._difference_at_failure(self._failure)

    def _failed_before(self, error: Exception | None) -> bool:
        """Whether the training failed before the callbacks were consulted that fail now.

        A log does not say which operation failed, so a replay goes on to the next line. One of them may lack the fact
        then that could not be measured; with the recorded declarations each place where they decide has a line.
        """
        lacks_fact = isinstance(error, CallbackError) and isinstance(error.__cause__, FactError)
        if not lacks_fact and not (self._exact and isinstance(error, (CallbackError, ConflictError))):
            return False
        entry = self.recorded.next_line()
        failed = None if entry is None else entry.body.get("error")
        return bool(failed) and not str(failed).startswith(_DECIDED)

    def compare(self, state: State, answers: Mapping[str, Transition]) -> None:
        if self.recorded.pass_if_written(state, answers):  # almost always
            self.last = state
            self.lines += 1
            return
        line = line_of(state, self._cache.answers_of(answers))
        if self.recorded.pass_if(EVENT[state.phase], line):
            self._agrees(state)
        elif (entry := self.recorded.next_line()) is None:
            self.finished = True  # the log ends here
        else:
            self._compare_closely(entry, state, answers, line)

    def _agrees(self, state: State) -> None:
        self.last = state
        self.lines += 1

    def _compare_closely(
        self, entry: Entry, state: State, answers: Mapping[str, Transition], line: dict[str, Json]
    ) -> None:
        """What it means that the next line is not the same to the letter."""
        logged = entry.body.get("reason")
        if type(logged) is str and reasons_agree(logged, state.reason):
            line["reason"] = logged
        line = without_added_fields(line, entry.body)
        if self.recorded.pass_if(EVENT[state.phase], line):
            self._agrees(state)
            return
        if not self._exact and not answers and state.phase not in ALWAYS and self.recorded.line_at(state) is None:
            return
        self.finished = True
        if entry.body.get("error") and not state.error:
            self._failure = entry
            if all(entry.body.get(name) == line[name] for name in COUNTERS):
                self._unlogged = state  # a command of this state may have failed, after it was decided
        else:
            self._divergence = self._difference(entry, EVENT[state.phase], line)

    def _difference(self, entry: Entry, event: str, line: dict[str, Json]) -> Divergence:
        """The first difference between a line of the log and the line of the replay at `event`."""
        recorded, decided = entry.body.get("answers", {}), line.get("answers", {})
        if entry.event != event and decided and not self._exact:  # a callback answers where none was consulted
            name = next(iter(decided))
            return _divergence(entry, Change("answer", name, None, decided[name]))
        names = [callback.name for callback in self._callbacks]
        change = first_change(
            (
                Part("", {"phase": entry.event}, {"phase": event}),
                Part("answer", recorded, decided, (*(name for name in recorded if name not in names), *names)),
                Part("", entry.body, line, dict.fromkeys((*line, *entry.body))),
            )
        )
        return _divergence(entry, change or Change("", "course", entry.course, "less of it"))

    def _divergence_by(self, error: CallbackError) -> Divergence:
        """The divergence that a callback makes because it raises."""
        entry = self.recorded.next_line()
        assert entry is not None
        recorded = entry.body.get("answers", {}).get(error.callback) if entry.event == error.phase.value else None
        return _divergence(entry, Change("answer", error.callback, recorded, f"raised: {error.__cause__ or error}"))

    def _difference_at_end(self, entry: Entry | None, error: Exception | None) -> Divergence | None:
        """The divergence if the log and the replay do not end at the same line."""
        if _is_out_of_step(error):
            change = Change("", "course", error.recorded, error.requested)
            return _divergence(entry or self.recorded.header, change)
        if entry is None:
            return None
        decided = error.requested if isinstance(error, EndOfLogError) else "the end"
        return _divergence(entry, Change("", "phase", entry.event, decided))

    def _difference_at_failure(self, entry: Entry) -> Divergence | None:
        """The divergence at the line after which the training failed.

        That the model or the data failed is a fact. That a callback failed is a decision, and the replay made
        another one.
        """
        error = entry.body["error"]
        if str(error).startswith(_DECIDED):
            return _divergence(entry, Change("", "error", error, None))
        if entry.event != Phase.TEARDOWN.value or not self.lines:
            return None
        for before in filter(None, (self.last, self._unlogged)):
            decided, line = decide_at_teardown(entry, before, self._callbacks, self.recorded.path)
            if line == entry.body:
                self.last = decided
                self.lines += 1
                return None
        return self._difference(entry, EVENT[Phase.TEARDOWN], line)


def _is_out_of_step(error: Exception | None) -> TypeGuard[OutOfStepError]:
    """Whether the log has something else next, and has not ended."""
    return isinstance(error, OutOfStepError) and not isinstance(error, EndOfLogError)
