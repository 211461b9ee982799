"""What if: asking a log what other callbacks would have done, and being honest about what it cannot know.

Rule of this file: up to the first decision that differs, what was recorded is what would have been. From
there on nothing is: so the answer is exact only where that decision ends the training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import attrs

from ..core.callback import Callback as CallbackRecord
from ..core.callback import is_due, memory_classes
from ..core.errors import CallbackError
from ..core.facts import KNOWN_AT, measurable
from ..core.phase import STOP_FLAGS, Flag, Phase
from ..core.state import State, counters_of
from ..core.table import epochs_reached, steps_reached
from ..core.transition import UNCHANGED, Command, Transition
from ..core.values import FrozenMap
from ..encoding import CannotDecodeError, Json, decode, encode, flag_names, flags
from ..interpreter import iterate
from ..sinks.base import Recorder
from ..wording import PLAN_FULFILLED
from .entries import Entry
from .errors import LogError, OutOfStepError
from .lines import ALWAYS, hyper_in, hyper_of
from .recorded import Recorded
from .replayer import said

Callback = CallbackRecord[Any]
Verdict = Literal["exact", "censored", "refused"]

HARMLESS = frozenset({"KeepWeights", "SaveCheckpoint"})
"""Commands that change neither weights nor data nor chance, so that a training goes on the same without them."""


@attrs.frozen
class BestEpoch:
    """The best value of a metric, and after how many epochs it was measured."""

    monitor: str
    value: float
    epoch: int


@attrs.frozen
class WhatIf:
    """What would have come of a training with other callbacks.

    Attributes:
        verdict: "exact" where the first decision that differs ends or suspends the training, or none
            differs to its end: all before it is fact. "censored" where it would still be running when
            the log ends. "refused" where before that it would have changed weights, data or chance,
            or needs a fact that was never recorded.
        stopped_at: the finished epochs where it would have ended; None unless exact. A training that
            is told to stop within an epoch closes that epoch, which is not counted here.
        best: the best that was measured until then, of the metric that a given callback monitors
            (else valid_loss, or train_loss); None if there is none.
        line: of the file: the first that differs, or the last that is valid.
        why: in a sentence.
        state: the last state that is known.
    """

    verdict: Verdict
    stopped_at: int | None
    best: BestEpoch | None
    line: int
    why: str
    state: State


def what_if(log: str | PathLike[str], callbacks: Iterable[Callback], *, without: Iterable[str] = ()) -> WhatIf:
    """What would have come of a recorded training with these callbacks, without training.

    Of the recorded callbacks, those with the name of a given one are replaced by it, and those named in
    `without` are left out; the answers of the others are taken as they were recorded.

    Args:
        log: the path of a log.
        callbacks: those to be asked.
        without: names of recorded callbacks to leave out.

    Raises:
        LogError: the log cannot be read.
        CallbackError: a callback raised.
        LookupError: there is no recorded callback of a name in `without`.
    """
    given = tuple(callbacks)
    recorded = Recorded(log)
    left_out = frozenset(without)
    names = {decode(spec["name"]) for spec in recorded.header.body["callbacks"]}
    if unknown := sorted(left_out - names):
        raise LookupError(
            f"there is no callback {', '.join(unknown)} to leave out: there are {', '.join(sorted(names))}"
        )
    last: State | None = None
    while True:
        call = _Supposed(recorded, given, left_out)
        answer = call.run(last)
        if answer is not None:
            return answer
        last = call.last


@attrs.frozen
class _Said(Command):
    """A command as it stands in a log: it can be compared, but not carried out."""

    text: Json = attrs.field(eq=repr, hash=False)


class _SaidToChangeHyper(_Said):
    """One that changed hyper-parameters: how, stands in the line."""

    changes_hyper = True


class _Supposed(Recorder):
    """One recorded call of `run`, gone through with other callbacks."""

    def __init__(self, recorded: Recorded, given: Sequence[Callback], without: frozenset[str]) -> None:
        self.recorded = recorded
        self.given = given
        self.given_names = {callback.name for callback in given}
        self.without = without
        self.answer: WhatIf | None = None
        self.trouble: LogError | None = None
        self.last: State | None = None
        self.line = 0

    def run(self, last: State | None) -> WhatIf | None:
        """The answer, or None if the log goes on after this call with nothing different."""
        header = self.recorded.next_header
        assert header is not None
        specs = header.body["callbacks"]
        self.specs = {decode(spec["name"]): spec for spec in specs}
        self.at = tuple(
            dict.fromkeys(
                (*ALWAYS, *(Phase(p) for spec in specs for p in spec["at"]), *map(Phase, header.body["phases"]))
            )
        )
        self.facts = frozenset(header.body["facts"])
        self.line = header.number
        state = self.recorded.start(last, {c.name: memory_classes(c) for c in self.given})
        if last is not None:
            own = {name: memory for name, memory in last.memory.items() if name in self.given_names}
            state = attrs.evolve(state, memory=FrozenMap({**state.memory, **own}))
        self.last = attrs.evolve(state, workload=None)
        if (unknown := self._unknown_fact()) is not None:
            return self._refused(header.number, unknown)
        others = [self._as_recorded(name, spec) for name, spec in self.specs.items() if name not in self.given_names]
        try:
            for _ in iterate(state, [*others, *map(self._asked, self.given)], sinks=[self], at=self.at):
                if self.answer is not None or self.trouble is not None:
                    break
        except OutOfStepError:
            pass
        except LogError as error:
            getattr(error, "__notes__", []).clear()  # they tell of a model that is not there
            raise
        except CallbackError as error:
            if error.callback not in self.given_names:
                raise LogError(str(error.__cause__), path=self.recorded.path, line=self.line) from error
            if not isinstance(error.__cause__, _NotRecordedError):
                raise
            self.answer = self._refused(self.line, str(error.__cause__))
        if self.trouble is not None:
            raise self.trouble
        return self.answer if self.answer is not None else self._to_the_end()

    # ---------------------------------------------------------------------- at each look

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        if self.answer is not None or self.trouble is not None or self.recorded.asked_beyond or state.error:
            return
        try:
            self._compare(state, answers)
        except (CannotDecodeError, AttributeError, TypeError, KeyError) as error:
            self.trouble = LogError(
                f"it is not of the form that a log has: {error}", path=self.recorded.path, line=self.line
            )
        except LogError as error:
            self.trouble = error

    def _compare(self, state: State, answers: Mapping[str, Transition]) -> None:
        entry = self.recorded.line_at(state)
        if entry is not None:
            self.line = entry.number
        assert self.last is not None
        before = hyper_of(self.last.hyper)
        then = _effect({} if entry is None else entry.body.get("answers", {}), before)
        now = _effect({name: _plain(answer) for name, answer in answers.items()}, before)
        if then == now:
            if entry is not None:
                self.recorded.pass_line()
            self.last = state
            return
        self.answer = self._judged(state, then, now, entry)

    def _judged(self, state: State, then: _Effect, now: _Effect, entry: Entry | None) -> WhatIf:
        """What the first difference means."""
        ends_now, ended_then = now.flags & STOP_FLAGS, then.flags & STOP_FLAGS
        if ends_now & ~ended_then:
            self.last = state
            where = "" if state.phase is Phase.EPOCH_END else f", at {state.phase.value} of batch {state.batch}"
            return self._answer("exact", state.epoch, f"{state.reason}{where}")
        if ended_then & ~ends_now:
            self.last = state
            counters = counters_of(state)
            if state.phase is Phase.EPOCH_END and (epochs_reached(counters) or steps_reached(counters)):
                return self._answer("exact", state.epoch, PLAN_FULFILLED)
            return self._answer(
                "censored", None, f"not by epoch {state.epoch}, where the recorded training ended; unknown after"
            )
        return self._refused(
            self.line, f"at {state.phase.value} of epoch {state.epoch}, batch {state.batch}, it {now.differs(then)}"
        )

    def _asked(self, callback: Callback) -> Callback:
        """The callback, asked only where all that it needs was recorded."""

        def decide(state: State, memory: object) -> Transition | None:
            if (name := self._missing_fact(callback, state)) is not None:
                where = f"at {state.phase.value} of epoch {state.epoch}, batch {state.batch}"
                raise _NotRecordedError(f"{callback.name!r} needs the fact {name!r} {where}, which was not recorded")
            return callback.decide(state, memory)

        return attrs.evolve(callback, decide=decide)

    def _missing_fact(self, callback: Callback, state: State) -> str | None:
        """A fact that the callback needs here, and that nobody asked for when this was recorded."""
        entry = self.recorded.line_at(state)
        for name in sorted(measurable(callback.needs, state.phase, self.recorded.sensors)):
            if (entry is None or name not in entry.facts) and not self._was_asked(name, state, entry):
                return name
        return None

    def _was_asked(self, name: str, state: State, entry: Entry | None) -> bool:
        """Whether the fact would stand in the line if there had been one: a skipped batch has no loss."""
        counters = counters_of(state)
        return entry is not None and (
            name in self.facts
            or any(
                name in spec["needs"]
                and state.phase.value in spec["at"]
                and is_due(CallbackRecord(name, state.phase, _silent, every=spec["every"]), state.phase, counters)
                for spec in self.specs.values()
            )
        )

    def _unknown_fact(self) -> str | None:
        for callback in self.given:
            for name in sorted(callback.needs - KNOWN_AT.keys() - self.recorded.sensors):
                return f"{callback.name!r} needs the fact {name!r}, which was not recorded"
        return None

    def _as_recorded(self, name: str, spec: Mapping[str, Json]) -> Callback:
        """A callback that answers what stands in the log, or nothing if it is to be left out."""

        def decide(state: State, memory: object) -> Transition | None:
            entry = self.recorded.line_at(state)
            answer = None if entry is None or name in self.without else entry.body.get("answers", {}).get(name)
            return None if entry is None or answer is None else _as_transition(answer, _unexplained(entry, state))

        return CallbackRecord(
            name, tuple(Phase(p) for p in spec["at"]), decide, needs=(), every=spec["every"], order=spec["order"]
        )

    # ------------------------------------------------------------------------- the answer

    def _to_the_end(self) -> WhatIf | None:
        """Nothing differs in this call of `run`."""
        assert self.last is not None
        if self.last.phase is Phase.DONE and self.recorded.next_header is None:
            why = self.last.reason or PLAN_FULFILLED
            return self._answer("exact", self.last.epoch, why)
        if self.recorded.next_header is not None:
            return None
        how = {Phase.SUSPENDED: "was suspended", Phase.FAILED: "failed"}.get(self.last.phase, "is where the log ends")
        return self._answer(
            "censored", None, f"not by epoch {self.last.epoch}, where the recorded training {how}; unknown after"
        )

    def _refused(self, line: int, why: str) -> WhatIf:
        assert self.last is not None
        return WhatIf("refused", None, None, line, why, self.last)

    def _answer(self, verdict: Verdict, stopped_at: int | None, why: str) -> WhatIf:
        assert self.last is not None
        return WhatIf(verdict, stopped_at, best_in(self.last, self.given), self.line, why, self.last)


def best_in(state: State, callbacks: Sequence[Callback]) -> BestEpoch | None:
    """The best value so far of the metric that one of the callbacks monitors."""
    monitor, mode = next(
        ((str(c.params["monitor"]), c.params.get("mode")) for c in callbacks if c.params.get("monitor")), ("", "min")
    )
    if not monitor:
        monitor = "valid_loss" if any("valid_loss" in metrics for metrics in state.history) else "train_loss"
    values = [
        BestEpoch(monitor, metrics[monitor], epoch)
        for epoch, metrics in enumerate(state.history, start=1)
        if metrics.get(monitor, float("nan")) - metrics.get(monitor, float("nan")) == 0.0
    ]
    pick = max if mode == "max" else min
    return pick(values, key=lambda best: best.value, default=None)


class _NotRecordedError(Exception):
    """A callback needs what was never recorded."""


def _silent(state: State, memory: object) -> None:
    """Nothing to say."""


@attrs.frozen
class _Effect:
    """What some answers do together to the training, leaving aside what they only remember and say."""

    flags: Flag
    hyper: Mapping[str, Json]
    commands: Sequence[Json]

    def differs(self, other: _Effect) -> str:
        """What it does otherwise than the other, in words."""
        if self.flags != other.flags:
            return (
                f"would have raised {flag_names(self.flags) or 'no flag'}, and not {flag_names(other.flags) or 'none'}"
            )
        if self.hyper != other.hyper:
            return f"would have set {said(self.hyper)}, and not {said(other.hyper)}"
        return f"would have given the commands {said(self.commands)}, and not {said(other.commands)}"


def _effect(answers: Mapping[str, Mapping[str, Json]], before: Mapping[str, Json]) -> _Effect:
    """The effect of answers as they stand in a log; `before` are the hyper-parameters before them."""
    raised, hyper, commands = Flag.NONE, {}, []
    for answer in answers.values():
        raised |= flags(answer.get("flags", ""))
        hyper.update({name: value for name, value in answer.get("hyper", {}).items() if value != before.get(name)})
        commands += [command for command in answer.get("commands", ()) if command.get("$") not in HARMLESS]
    return _Effect(raised, hyper, sorted(commands, key=repr))


def _plain(answer: Transition) -> dict[str, Json]:
    commands = [c.text if isinstance(c, _Said) else encode(c) for c in answer.commands]
    return {"flags": flag_names(answer.flags), "hyper": hyper_of(answer.hyper), "commands": commands}


def _unexplained(entry: Entry, state: State) -> bool:
    """Whether the hyper-parameters in the line are not those that the answers in it set: then a command did."""
    answers = entry.body.get("answers", {}).values()
    expected = {**state.hyper, **{k: v for answer in answers for k, v in hyper_in(answer.get("hyper", {})).items()}}
    return expected != hyper_in(entry.body["hyper"])


def _as_transition(answer: Mapping[str, Json], changed_hyper: bool) -> Transition:
    kind = _SaidToChangeHyper if changed_hyper else _Said
    return Transition(
        flags=flags(answer.get("flags", "")),
        hyper=hyper_in(answer.get("hyper", {})),
        memory=UNCHANGED,
        commands=tuple(kind(command) for command in answer.get("commands", ())),
        reason=decode(answer.get("reason", "")),
    )
