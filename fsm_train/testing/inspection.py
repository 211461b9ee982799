"""All trainings of one callback, run once for all checks; and the two checks that are no law of a training."""

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
from . import (
    declared_reads,  # noqa: F401  its law is one of LAWS
    hidden_state,
)
from .cases import Case, Finding, Law, describe_change
from .consultation import Consultation, same_response
from .fresh_process import CannotBeSentError, answers_in_new_processes
from .laws import LAWS
from .strategies import trainings
from .training import Training, state_as_code

BUDGET = 1e-3
"""Seconds that a consultation may take: the median over states, each the shortest of three calls."""

_HYPER: Mapping[str, Hyper] = {"lr": 0.1}
_OPTIMIZER_KEYS = frozenset(
    {"momentum", "weight_decay", "dampening", "beta1", "beta2", "eps", "alpha", "rho", "lambd", "t0", "lr_decay"}
)
_MAX_QUESTIONS = 200

_NEW_PROCESS = Law(
    "same_in_new_process",
    "It answers the same in a fresh process, under another PYTHONHASHSEED.",
    "Go through sets in sorted order, and use no hash() of strings: both differ from process to process.",
    lambda case: None,
    after=("answers_the_same_twice", "same_on_every_rank", "goes_on_as_before"),
)
_SPEED = Law(
    "is_fast",
    f"A consultation takes less than {BUDGET * 1000:g} ms.",
    "Do what is slow once, in the factory; what needs the data or the model is the business of a command.",
    lambda case: None,
)
CHECKS: Mapping[str, Law] = {**LAWS, _NEW_PROCESS.name: _NEW_PROCESS, _SPEED.name: _SPEED}
"""All checks by name."""


class Inspection:
    """All trainings of one callback, run once for all checks.

    Attributes:
        callback: the callback.
        examples: number of trainings.
        measured: strategies for facts and metrics, by name.
        hyper: the hyper-parameters; with `adds_hyper` those that the callback reads are added.
        adds_hyper: whether the caller gave none.
        metrics: names of the metrics that the callback reads.
        consultations: number of consultations so far.
        sample: some of them, for the speed and for new processes.
        not_sent: why the callback cannot be sent to a new process; empty if it can.
    """

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
        self.adds_hyper = hyper is None
        self.metrics: frozenset[str] = frozenset()
        self.consultations = 0
        self.sample: list[Consultation] = []
        self.not_sent = ""

    @functools.cached_property
    def failures(self) -> Mapping[str, tuple[Finding, Training | None]]:
        """The finding of each check that fails, and the first training that shows it; None where no training does."""
        try:
            sensors = self.callback.needs - KNOWN_AT.keys()
            check_needs(f"callback {self.callback.name!r}", self.callback.needs, self.callback.at, sensors)
        except ValueError as error:
            return {"needs_what_it_reads": (Finding(str(error)), None)}
        self._learn_names()
        found: dict[str, tuple[Finding, Training | None]] = {}

        def look(training: Training) -> None:
            case = self._case(training)
            self.consultations += len(case.alone)
            self.sample += case.alone[: max(4, _MAX_QUESTIONS // self.examples)]
            for name, law in LAWS.items():
                if name not in found and not self._blocked_by(law, found):
                    finding = law.judge(case)
                    if finding is not None:
                        found[name] = finding, training

        self._for_each_training(look, self.examples)
        if (slow := self._check_speed()) is not None:
            found[_SPEED.name] = slow, None
        if not self._blocked_by(_NEW_PROCESS, found) and (other := self._check_in_new_processes()) is not None:
            found[_NEW_PROCESS.name] = other, None
        return {name: found[name] for name in CHECKS if name in found and not self._blocked_by(CHECKS[name], found)}

    def not_judged(self, name: str) -> str:
        """Why the check cannot judge the callback; empty if it can."""
        if "needs_what_it_reads" in self.failures and self.failures["needs_what_it_reads"][1] is None:
            return "" if name == "needs_what_it_reads" else "no training can begin with what it needs"
        if blocker := self._blocked_by(CHECKS[name], self.failures):
            return f"it fails {blocker}"
        return self.not_sent if name == _NEW_PROCESS.name else ""

    def text(self, name: str) -> str:
        """The finding, with the smallest example, and advice."""
        finding, training = self.failures[name]
        if training is not None:
            finding, training = self._smallest(CHECKS[name], finding, training)
        lines = [finding.what]
        if finding.at is not None:
            memory = "" if finding.at.memory is None else f", {finding.at.memory!r}"
            lines.append(f"   Example: {self.callback.name}({state_as_code(finding.at.state)}{memory})")
        if training is not None and CHECKS[name].whole:
            lines.append(f"   in {_shown_training(training)}")
        return "\n".join([*lines, f"   Mend: {CHECKS[name].mend}"])

    # ------------------------------------------------------------------------------------- steps

    def _case(self, training: Training) -> Case:
        # The train loss is always measured.
        return Case(self.callback, training, self.hyper, sorted(self.metrics - {"train_loss"}))

    def _trainings(self) -> SearchStrategy[Training]:
        return trainings(
            sorted({"valid_loss", "valid_other", *self.metrics}), sorted(self.callback.needs), self.measured
        )

    def _for_each_training(self, look: Callable[[Training], None], examples: int) -> None:
        @_settings(examples)
        @given(self._trainings())
        def run_one(training: Training) -> None:
            look(training)

        run_one()

    def _learn_names(self) -> None:
        """Find the metrics and hyper-parameters that the callback reads, so that the trainings have them."""
        names: set[str] = set()

        def look(training: Training) -> None:
            for c in self._case(training).alone:
                names.update(c.observations.metrics)
                keys = c.observations.hyper.intersection(_OPTIMIZER_KEYS) if self.adds_hyper else ()
                self.hyper = {**dict.fromkeys(keys, 0.1), **self.hyper}

        # A callback may read a second metric only after it has found the first.
        for _ in range(3):
            self._for_each_training(look, min(15, self.examples))
            if names == self.metrics:
                break
            self.metrics = frozenset(names)

    def _blocked_by(self, law: Law, found: Mapping[str, object]) -> str:
        """The failing check that this law comes after, directly or not; empty if there is none."""
        for before in law.after:
            if before in found:
                return before
            if blocker := self._blocked_by(CHECKS[before], found):
                return blocker
        return ""

    def _smallest(self, law: Law, finding: Finding, training: Training) -> tuple[Finding, Training]:
        try:
            smallest = find(
                self._trainings(),
                lambda training: law.judge(self._case(training)) is not None,
                settings=_settings(self.examples),
                random=random.Random(0),
            )
        except HypothesisException:  # not reproducible: keep the first example
            return finding, training
        return law.judge(self._case(smallest)) or finding, smallest

    def _check_speed(self) -> Finding | None:
        some = self.sample[:: max(1, len(self.sample) // 50)]
        decide = hidden_state.fresh(self.callback.decide)
        took = sorted((min(_seconds(decide, c) for _ in range(3)), i) for i, c in enumerate(some))
        if not took or took[len(took) // 2][0] < BUDGET:
            return None
        seconds, i = took[len(took) // 2]
        return Finding(f"a consultation takes {seconds * 1000:.2g} ms; the budget is {BUDGET * 1000:g} ms", some[i])

    def _check_in_new_processes(self) -> Finding | None:
        asked = self.sample[:_MAX_QUESTIONS]
        try:
            answers = answers_in_new_processes(self.callback.decide, [(c.state, c.memory) for c in asked])
        except CannotBeSentError as why:
            self.not_sent = str(why)
            return None
        for responses in answers:
            for c, response in zip(asked, responses, strict=True):
                if not same_response(c.response, response):
                    return Finding(describe_change(c.response, response, "in a fresh process"), c)
        return None


def _seconds(decide: Callable[..., object], c: Consultation) -> float:
    began = time.perf_counter()
    with contextlib.suppress(Exception):  # the time until it raises counts too
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


def _shown_training(training: Training) -> str:
    """The training as code, without the defaults."""
    default = Training()
    fields = [field.name for field in attrs.fields(Training)]
    changed = [
        f"{name}={getattr(training, name)}" for name in fields if getattr(training, name) != getattr(default, name)
    ]
    return f"Training({', '.join(changed)})"
