"""What if: what other callbacks would have decided in a recorded training.

Rule of this file: up to the first decision that differs, the log is what would have been. After it nothing is known,
so the answer is exact only where that decision ends the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

import attrs

from ..core.arguments import check_path
from ..core.callback import Callback as CallbackRecord
from ..core.callback import check_names, is_due, memory_classes
from ..core.errors import CallbackError, ConflictError
from ..core.facts import UNSAVED, known_at, measurable
from ..core.phase import STOP_FLAGS, Flag, Phase
from ..core.state import State
from ..core.table import epochs_reached, steps_reached
from ..core.transition import Command, Transition
from ..core.values import FrozenMap
from ..encoding import Json, decode, encode, flag_names, flags
from ..wording import PLAN_FULFILLED
from .added_fields import without_added_fields
from .best import BestEpoch, best_in, closes_epoch, finished_epochs
from .entry import Entry
from .errors import LogError
from .from_header import as_recorded
from .line_difference import Part, first_change, format_json
from .lines import decode_hyper, hyper_of, logged_phases
from .recorded import Recorded
from .rerun import Rerun

Callback = CallbackRecord[Any]
Verdict = Literal["exact", "censored", "refused"]

HARMLESS = frozenset({"KeepWeights", "SaveCheckpoint"})
"""Commands that change neither weights nor data nor random numbers: a training without them is the same."""


@attrs.frozen
class WhatIf:
    """What would have become of a training with other callbacks.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> answer = what_if("run.jsonl", [early_stopping(patience=1)])
    >>> answer.verdict, answer.stopped_at, answer.best.value
    ('exact', 2, 1.0)

    Attributes:
        verdict: "exact" if the first decision that differs ends or suspends the training, or if none differs to its
            end; everything before that decision is fact. "censored" if the training would still be running where the
            log ends. "refused" if before that a decision would have changed weights, data or random numbers, or
            needs a fact that was not recorded.
        stopped_at: the number of finished epochs at the end; None unless exact. A training that stops within an
            epoch also closes that epoch, which is not counted; one that stops by its last validation has finished it.
        best: the best value until then of the metric that a given callback monitors, else of valid_loss or
            train_loss, those of validations within an epoch included; None if there is none.
        line: the number of the line in the file: the first that differs, or the last that is valid.
        why: the reason, as a sentence.
        state: the last state that is known.
    """

    verdict: Verdict
    stopped_at: int | None
    best: BestEpoch | None
    line: int
    why: str
    state: State


def what_if(log: str | PathLike[str], callbacks: Iterable[Callback], *, without: Iterable[str] = ()) -> WhatIf:
    """What would have become of a recorded training with these callbacks, without training.

    A given callback replaces the recorded one of the same name. The recorded callbacks in `without` are left out. The
    other recorded callbacks give the answers in the log.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> from fsm_train.callbacks import early_stopping
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> answer = what_if("run.jsonl", [early_stopping(patience=1)])
    >>> answer.verdict, answer.state.epoch
    ('exact', 2)

    Args:
        log: the path of a log.
        callbacks: the callbacks to consult.
        without: the names of recorded callbacks to leave out.

    Raises:
        LogError: the log cannot be read.
        CallbackError: a callback raised.
        LookupError: no recorded callback has a name in `without`.
    """
    check_path(log, "the log of what_if", "what_if('run.jsonl', […])")
    given = check_names(callbacks)
    recorded = Recorded(log)
    excluded = frozenset((without,) if isinstance(without, str) else without)
    names = {decode(spec["name"]) for spec in recorded.header.body["callbacks"]}
    if unknown := sorted(excluded - names):
        raise LookupError(
            f"there is no callback {', '.join(unknown)} to leave out: there are {', '.join(sorted(names))}"
        )
    last: State | None = None
    within: list[State] = []
    while True:
        state = recorded.start(last, {callback.name: memory_classes(callback) for callback in given})
        if last is not None:
            own = {c.name: last.memory[c.name] for c in given if c.name in last.memory}
            state = attrs.evolve(state, memory=FrozenMap({**state.memory, **own}))
        call = _WhatIf(recorded, state, given, excluded, within)
        answer = call.answer()
        if answer is not None:
            return answer
        last = call.last


@attrs.frozen
class LoggedCommand(Command):
    """A command of a log. It can be compared, but not carried out.

    Attributes:
        encoded: the command as JSON.
    """

    changes_hyper = False
    encoded: Json = attrs.field(eq=repr, hash=False)


class LoggedHyperCommand(LoggedCommand):
    """A command that changed hyper-parameters; their values are in the line."""

    changes_hyper = True


class _WhatIf(Rerun):
    """Compares what the answers to each state do with what the recorded answers did."""

    def __init__(
        self,
        recorded: Recorded,
        start: State,
        given: Sequence[Callback],
        excluded: frozenset[str],
        within: list[State],
    ) -> None:
        header = recorded.header
        super().__init__(recorded, start, logged_phases(header.body))
        self._specs = {decode(spec["name"]): spec for spec in header.body["callbacks"]}
        self._given = tuple(as_recorded(callback, self._specs.get(callback.name)) for callback in given)
        self._given_names = {callback.name for callback in given}
        self._excluded = excluded
        self._within = within  # the states after validations in the middle of an epoch, of all calls so far
        self._logged_facts = frozenset(header.body["facts"])
        self._line = header.number  # the last line that was compared
        self._answer: WhatIf | None = None

    def answer(self) -> WhatIf | None:
        """The answer; None if nothing differs and the log has a further call of `run`."""
        if (unknown := self._unknown_fact()) is not None:
            return self._result("refused", unknown)
        others = [
            self._recorded_callback(name, spec) for name, spec in self._specs.items() if name not in self._given_names
        ]
        error = self.rerun([*others, *map(self._checked, self._given)])
        if isinstance(error, ConflictError):
            raise error
        if isinstance(error, CallbackError):
            if error.callback not in self._given_names:
                raise LogError(str(error.__cause__ or error), path=self.recorded.path, line=self._line) from error
            if not isinstance(error.__cause__, _NotRecordedError):
                raise error
            return self._result("refused", str(error.__cause__))
        return self._answer if self._answer is not None else self._at_end()

    # ---------------------------------------------------------------------- at each state

    def compare(self, state: State, answers: Mapping[str, Transition]) -> None:
        if state.error:
            return
        if self._answer is not None:  # it stopped by the validation at the end of this epoch, which is over now
            self.last, self.finished = state, True
            self._answer = self._result("exact", state.reason or self._answer.why, self._answer.line)
            return
        entry = self.recorded.line_at(state)
        if entry is not None:
            self._line = entry.number
        logged: Mapping[str, Json] = {} if entry is None else entry.body.get("answers", {})
        before = hyper_of(self.last.hyper)
        then = _effects(logged, before)
        decided = {name: _comparable(answer) for name, answer in answers.items()}
        now = _effects(decided, before)
        if then != now:
            now = _effects(without_added_fields({"answers": decided}, {"answers": logged})["answers"], before)
        if then != now:
            self._answer = self._judge(state, then, now)
            self.finished = self._answer.verdict != "exact" or not closes_epoch(state)
            return
        if state.phase is Phase.VALID_END and not state.batches_over:
            self._within.append(state)
        if entry is not None:
            self.recorded.pass_line()
        self.last = state

    def _judge(self, state: State, then: _Effects, now: _Effects) -> WhatIf:
        """The answer that follows from the first difference."""
        ends_now, ended_then = now["flags"] & STOP_FLAGS, then["flags"] & STOP_FLAGS
        if ends_now & ~ended_then:
            self.last = state
            ends_epoch = state.phase is Phase.EPOCH_END or closes_epoch(state)
            where = "" if ends_epoch else f", at {state.phase.value} of batch {state.batch}"
            if state.phase is Phase.VALID_END:
                self._within.append(state)
            return self._result("exact", f"{state.reason}{where}")
        if ended_then & ~ends_now:
            self.last = state
            at_end = attrs.evolve(state, epoch=finished_epochs(state))
            if (state.phase is Phase.EPOCH_END or closes_epoch(state)) and (
                epochs_reached(at_end) or steps_reached(at_end)
            ):
                return self._result("exact", PLAN_FULFILLED)
            return self._censored("ended", finished_epochs(state))
        difference = _format_difference(then, now)
        return self._result(
            "refused", f"at {state.phase.value} of epoch {state.epoch}, batch {state.batch}, it {difference}"
        )

    # ---------------------------------------------------------------------- the callbacks

    def _checked(self, callback: Callback) -> Callback:
        """The callback, with an error where a fact that it needs was not recorded."""

        def decide(state: State, memory: object) -> Transition | None:
            if (name := self._missing_fact(callback, state)) is not None:
                where = f"at {state.phase.value} of epoch {state.epoch}, batch {state.batch}"
                raise _NotRecordedError(f"{callback.name!r} needs the fact {name!r} {where}, which was not recorded")
            return callback.decide(state, memory)

        return attrs.evolve(callback, decide=decide, reads=None)

    def _missing_fact(self, callback: Callback, state: State) -> str | None:
        """A fact that the callback needs at this state and that was not measured for the log."""
        entry = self.recorded.line_at(state)
        for name in sorted(measurable(callback.needs, state.phase, self.recorded.sensors)):
            if name.startswith(UNSAVED):
                continue  # it is there only where a save failed
            if (entry is None or name not in entry.facts) and not self._was_requested(name, state, entry):
                return name
        return None

    def _was_requested(self, name: str, state: State, entry: Entry | None) -> bool:
        """Whether the log would have this fact if it had been measured: a skipped batch has no loss."""
        return entry is not None and (
            name in self._logged_facts
            or any(
                name in spec["needs"]
                and state.phase.value in spec["at"]
                and is_due(CallbackRecord(name, state.phase, _no_answer, every=spec["every"]), state.phase, state)
                for spec in self._specs.values()
            )
        )

    def _unknown_fact(self) -> str | None:
        """Why a given callback cannot be consulted at all; None if each can."""
        for callback in self._given:
            for name in sorted(callback.needs - self.recorded.sensors):
                if known_at(name) is not None:
                    continue
                return f"{callback.name!r} needs the fact {name!r}, which was not recorded"
        return None

    def _recorded_callback(self, name: str, spec: Mapping[str, Json]) -> Callback:
        """A callback that gives the answers in the log; none if it is left out."""

        def decide(state: State, memory: object) -> Transition | None:
            entry = self.recorded.line_at(state)
            answer = None if entry is None or name in self._excluded else entry.body.get("answers", {}).get(name)
            if entry is None or answer is None:
                return None
            return _decode_answer(answer, LoggedHyperCommand if _command_set_hyper(entry, state) else LoggedCommand)

        return CallbackRecord(
            name, tuple(Phase(p) for p in spec["at"]), decide, needs=(), every=spec["every"], order=spec["order"]
        )

    # ------------------------------------------------------------------------- the answer

    def _at_end(self) -> WhatIf | None:
        """The answer where nothing differs in this call of `run`."""
        if self.recorded.next_header is not None:
            return None
        if self.last.phase is Phase.DONE:
            return self._result("exact", self.last.reason or PLAN_FULFILLED)
        endings = {Phase.SUSPENDED: "was suspended", Phase.FAILED: "failed"}
        return self._censored(endings.get(self.last.phase, "is where the log ends"), self.last.epoch)

    def _censored(self, ending: str, epoch: int) -> WhatIf:
        return self._result("censored", f"not by epoch {epoch}, where the recorded training {ending}; unknown after")

    def _result(self, verdict: Verdict, why: str, line: int = 0) -> WhatIf:
        stopped_at = finished_epochs(self.last) if verdict == "exact" else None
        best = None if verdict == "refused" else best_in(self.last, self._given, self._within)
        return WhatIf(verdict, stopped_at, best, line or self._line, why, self.last)


class _NotRecordedError(Exception):
    """A callback needs a fact that was not recorded."""


def _no_answer(state: State, memory: object) -> None:
    """Nothing to say."""


class _Effects(TypedDict):
    """What the answers at one state do together to the training; memories and reasons do nothing to it."""

    flags: Flag
    hyper: Mapping[str, Json]
    commands: Sequence[Json]


def _effects(answers: Mapping[str, Mapping[str, Json]], before: Mapping[str, Json]) -> _Effects:
    """The effects of encoded answers; `before` has the hyper-parameters before them."""
    if not answers:
        return {"flags": Flag.NONE, "hyper": {}, "commands": []}
    raised, hyper, commands = Flag.NONE, {}, []
    for answer in answers.values():
        raised |= flags(answer.get("flags", ""))
        hyper.update({name: value for name, value in answer.get("hyper", {}).items() if value != before.get(name)})
        commands += [command for command in answer.get("commands", ()) if command.get("$") not in HARMLESS]
    return {"flags": raised, "hyper": hyper, "commands": sorted(commands, key=repr)}


def _format_difference(then: _Effects, now: _Effects) -> str:
    change = first_change([Part("", then, now)])
    assert change is not None
    if change.key == "flags":
        return f"would have raised {flag_names(change.b) or 'no flag'}, and not {flag_names(change.a) or 'none'}"
    verb = {"hyper": "set", "commands": "given the commands"}[change.key]
    return f"would have {verb} {format_json(change.b)}, and not {format_json(change.a)}"


def _comparable(answer: Transition) -> dict[str, Json]:
    """The answer as JSON, as far as `_effects` reads it."""
    commands = [
        command.encoded if isinstance(command, LoggedCommand) else encode(command) for command in answer.commands
    ]
    return {"flags": flag_names(answer.flags), "hyper": hyper_of(answer.hyper), "commands": commands}


def _command_set_hyper(entry: Entry, state: State) -> bool:
    """Whether a command changed hyper-parameters: they are not what the answers in the line set."""
    answers = entry.body.get("answers", {}).values()
    expected = {**state.hyper, **{k: v for answer in answers for k, v in decode_hyper(answer.get("hyper", {})).items()}}
    return expected != decode_hyper(entry.body["hyper"])


def _decode_answer(answer: Mapping[str, Json], command: Callable[[Json], LoggedCommand]) -> Transition:
    said: dict[str, Any] = {}  # what is left out changes nothing, and need not be decoded
    if "flags" in answer:
        said["flags"] = flags(answer["flags"])
    if "hyper" in answer:
        said["hyper"] = decode_hyper(answer["hyper"])
    if "commands" in answer:
        said["commands"] = tuple(map(command, answer["commands"]))
    if "reason" in answer:
        said["reason"] = decode(answer["reason"])
    return Transition(**said)
