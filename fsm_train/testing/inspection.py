"""All trainings of one callback, gone through once for all checks."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from hypothesis import HealthCheck, Phase, Verbosity, find, given, settings
from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy

from ..core.callback import Callback, check_names
from ..core.facts import KNOWN_AT, check_needs
from ..core.state import Hyper
from . import hidden
from .cases import Case, Finding, Law, changed
from .consultation import Consultation, alike
from .examination import Training, written
from .fresh_process import CannotBeSentError, answers_elsewhere
from .laws import LAWS
from .strategies import trainings

BUDGET = 1e-3
"""What a consultation may take, in seconds: the median, of the quickest of three tries for each state."""

_HYPER: Mapping[str, Hyper] = {"lr": 0.1}
_OTHERS = frozenset(
    {"momentum", "weight_decay", "dampening", "beta1", "beta2", "eps", "alpha", "rho", "lambd", "t0", "lr_decay"}
)
_QUESTIONS = 200

_FRESH = Law(
    "answers_the_same_elsewhere",
    "It answers the same in a fresh process, under another PYTHONHASHSEED.",
    "Go through sets in sorted order, and use no hash() of strings: both differ from process to process.",
    lambda case: None,
    after=("answers_the_same_twice", "goes_on_as_before"),
)
_QUICK = Law(
    "takes_no_time",
    f"A consultation takes less than {BUDGET * 1000:g} ms.",
    "Do what is slow once, in the factory; what needs the data or the model is the business of a command.",
    lambda case: None,
)
CHECKS: Mapping[str, Law] = {**LAWS, _FRESH.name: _FRESH, _QUICK.name: _QUICK}
"""All checks, by name."""


class Inspection:
    """All trainings of one callback, gone through once for all checks."""

    def __init__(
        self,
        callback: Callback[Any],
        examples: int,
        measured: Mapping[str, SearchStrategy[float]] | None,
        hyper: Mapping[str, Hyper] | None,
    ) -> None:
        check_names([callback])
        if examples < 1:
            raise ValueError(f"examples={examples!r}: look at one training at least")
        self.callback = callback
        self.examples = examples
        self.measured = measured or {}
        self.hyper = _HYPER if hyper is None else hyper
        self.grows = hyper is None
        self.asked: frozenset[str] = frozenset()
        self.consultations = 0
        self.sample: list[Consultation] = []
        self.unsent = ""

    @functools.cached_property
    def failures(self) -> Mapping[str, tuple[Finding, Training | None]]:
        """What is wrong, by check, in the order of the checks, each with the training in which it was seen first."""
        try:
            sensors = self.callback.needs - KNOWN_AT.keys()
            check_needs(f"callback {self.callback.name!r}", self.callback.needs, self.callback.at, sensors)
        except ValueError as error:
            return {"needs_what_it_reads": (Finding(str(error)), None)}
        self._get_to_know()
        found: dict[str, tuple[Finding, Training | None]] = {}

        def look(training: Training) -> None:
            case = self._case(training)
            self.consultations += len(case.alone)
            self.sample += case.alone[: max(4, _QUESTIONS // self.examples)]
            for name, law in LAWS.items():
                if name not in found and not self._spoilt(law, found):
                    finding = law.judge(case)
                    if finding is not None:
                        found[name] = finding, training

        self._go_through(look, self.examples)
        if (slow := self._slow()) is not None:
            found[_QUICK.name] = slow, None
        if not self._spoilt(_FRESH, found) and (other := self._elsewhere()) is not None:
            found[_FRESH.name] = other, None
        return {name: found[name] for name in CHECKS if name in found and not self._spoilt(CHECKS[name], found)}

    def not_judged(self, name: str) -> str:
        """Why the check says nothing; nothing if it does."""
        if "needs_what_it_reads" in self.failures and self.failures["needs_what_it_reads"][1] is None:
            return "" if name == "needs_what_it_reads" else "no training can begin with what it needs"
        if spoilt := self._spoilt(CHECKS[name], self.failures):
            return f"it fails {spoilt}"
        return self.unsent if name == _FRESH.name else ""

    def text(self, name: str) -> str:
        """What is wrong, with the smallest example, and how to mend it."""
        finding, training = self.failures[name]
        if training is not None:
            finding, training = self._smallest(CHECKS[name], finding, training)
        lines = [finding.what]
        if finding.at is not None:
            memory = "" if finding.at.memory is None else f", {finding.at.memory!r}"
            lines.append(f"   Example: {self.callback.name}({written(finding.at.state)}{memory})")
        if training is not None and CHECKS[name].whole:
            lines.append(f"   in {_shortly(training)}")
        return "\n".join([*lines, f"   Mend: {CHECKS[name].mend}"])

    # ------------------------------------------------------------------------------------- steps

    def _case(self, training: Training) -> Case:
        return Case(
            self.callback, training, self.hyper, sorted(self.asked - {"train_loss"})
        )  # which is always measured

    def _trainings(self) -> SearchStrategy[Training]:
        return trainings(sorted({"valid_loss", "valid_other", *self.asked}), sorted(self.callback.needs), self.measured)

    def _go_through(self, look: Callable[[Training], None], examples: int) -> None:
        @_settings(examples)
        @given(self._trainings())
        def through(training: Training) -> None:
            look(training)

        through()

    def _get_to_know(self) -> None:
        """Find out which metrics and hyper-parameters it asks for, so that the trainings have them."""
        names: set[str] = set()

        def look(training: Training) -> None:
            for c in self._case(training).alone:
                names.update(c.notes.metrics)
                vocabulary = c.notes.hyper.intersection(_OTHERS) if self.grows else ()
                self.hyper = {**dict.fromkeys(vocabulary, 0.1), **self.hyper}

        # A callback may ask for a second metric only once it has found the first.
        for _ in range(3):
            self._go_through(look, min(15, self.examples))
            if names == self.asked:
                break
            self.asked = frozenset(names)

    def _spoilt(self, law: Law, found: Mapping[str, object]) -> str:
        """The check, among those that this one comes after, that fails."""
        for before in law.after:
            if before in found:
                return before
            if spoilt := self._spoilt(CHECKS[before], found):
                return spoilt
        return ""

    def _smallest(self, law: Law, finding: Finding, training: Training) -> tuple[Finding, Training]:
        try:
            smallest = find(
                self._trainings(),
                lambda training: law.judge(self._case(training)) is not None,
                settings=_settings(self.examples),
                random=random.Random(0),
            )
        except HypothesisException:  # it does not happen again: what was seen first is all there is
            return finding, training
        return law.judge(self._case(smallest)) or finding, smallest

    def _slow(self) -> Finding | None:
        some = self.sample[:: max(1, len(self.sample) // 50)]
        decide = hidden.fresh(self.callback.decide)
        took = sorted((min(_seconds(decide, c) for _ in range(3)), i) for i, c in enumerate(some))
        if not took or took[len(took) // 2][0] < BUDGET:
            return None
        seconds, i = took[len(took) // 2]
        return Finding(f"a consultation takes {seconds * 1000:.2g} ms; the budget is {BUDGET * 1000:g} ms", some[i])

    def _elsewhere(self) -> Finding | None:
        asked = self.sample[:_QUESTIONS]
        try:
            answers = answers_elsewhere(self.callback.decide, [(c.state, c.memory) for c in asked])
        except CannotBeSentError as why:
            self.unsent = str(why)
            return None
        for outcomes in answers:
            for c, outcome in zip(asked, outcomes, strict=True):
                if not alike(c.outcome, outcome):
                    return Finding(changed(c.outcome, outcome, "in a fresh process"), c)
        return None


def _seconds(decide: Callable[..., object], c: Consultation) -> float:
    began = time.perf_counter()
    with contextlib.suppress(Exception):  # how it refuses counts as well
        decide(c.state, c.memory)
    return time.perf_counter() - began


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )


def _shortly(training: Training) -> str:
    """The training, without what is as always."""
    always = Training()
    fields = [field.name for field in attrs.fields(Training)]
    said = [f"{name}={getattr(training, name)}" for name in fields if getattr(training, name) != getattr(always, name)]
    return f"Training({', '.join(said)})"
