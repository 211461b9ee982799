"""Check any callback, as scikit-learn checks any estimator.

A callback runs in a few hundred short simulated trainings, which Hypothesis draws. Each law in `laws.py` is a
check; what breaks one is shrunk to an example that a person can read. Two checks concern the callback as a
whole: that it answers the same in a new process, and that it is fast.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
from hypothesis.strategies import SearchStrategy

from ..core.callback import Callback, check_names
from ..core.errors import Travels
from ..core.state import Hyper
from .inspection import CHECKS, Inspection

_F = TypeVar("_F", bound=Callable[..., Any])


class CheckFailedError(AssertionError):
    """A callback fails one check; the message says what is wrong, shows an example, and says how to mend it.

    >>> from fsm_train import Phase, on
    >>> @on(Phase.LOSS_END)
    ... def undeclared(state):
    ...     state.facts["loss"]
    >>> try:
    ...     for check in callback_checks(undeclared, examples=5):
    ...         check()
    ... except CheckFailedError as error:
    ...     print(str(error).splitlines()[0])
    it reads the fact 'loss' without needs={'loss'}
    """


class NotJudgedError(Exception):
    """A check that says nothing of this callback, and why.

    >>> from fsm_train import Phase, on
    >>> @on(Phase.LOSS_END)
    ... def undeclared(state):
    ...     state.facts["loss"]
    >>> for check in callback_checks(undeclared, examples=5):
    ...     try:
    ...         check()
    ...     except CheckFailedError:
    ...         failed = check.name
    ...     except NotJudgedError as why:
    ...         print(why)
    it fails needs_what_it_reads
    """


class CallbackCheckError(Travels, AssertionError):
    """A callback fails some checks.

    >>> from fsm_train import Phase, on
    >>> @on(Phase.LOSS_END)
    ... def undeclared(state):
    ...     state.facts["loss"]
    >>> try:
    ...     check_callback(undeclared, examples=5)
    ... except CallbackCheckError as error:
    ...     print(*error.report.failed)
    needs_what_it_reads

    Attributes:
        report: what was found.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


@attrs.frozen
class Report:
    """What the checks of one callback found.

    Attributes:
        callback: its name.
        examples: number of trainings.
        consultations: number of consultations in them, without repetitions.
        seconds: seconds that the checks took.
        passed: names of the checks that it passes.
        failed: what is wrong, by name of the check that it fails.
        expected: the reason, by name of the check that it is expected to fail.
        not_judged: the reason, by name of the check that cannot judge it.
    """

    callback: str
    examples: int
    consultations: int
    seconds: float
    passed: tuple[str, ...]
    failed: Mapping[str, str]
    expected: Mapping[str, str]
    not_judged: Mapping[str, str]

    def __str__(self) -> str:
        looked = f"{self.consultations} consultations in {self.examples} trainings"
        lines = [f"callback {self.callback!r} fails {len(self.failed)} of {len(CHECKS)} checks, after {looked}"]
        lines += [f"\n{i}. {name}: {text}" for i, (name, text) in enumerate(self.failed.items(), 1)]
        for why in dict.fromkeys(self.not_judged.values()):
            names = ", ".join(name for name in self.not_judged if self.not_judged[name] == why)
            lines.append(f"\nnot judged, since {why}: {names}")
        return "\n".join(lines)


@attrs.frozen
class Check:
    """One check of one callback. Call it to run it.

    Attributes:
        name: the name of the check.
        sentence: what holds if the callback passes.
        callback: the callback that is checked.

    Raises:
        CheckFailedError: the callback fails the check.
        NotJudgedError: another check must pass first.
    """

    name: str
    sentence: str
    callback: Callback[Any]
    _inspection: Inspection = attrs.field(repr=False, eq=False)

    def __call__(self) -> None:
        if why := self._inspection.not_judged(self.name):
            raise NotJudgedError(why)
        if self.name in self._inspection.failures:
            raise CheckFailedError(self._inspection.text(self.name))

    def __str__(self) -> str:
        return self.name


def check_callback(
    callback: Callback[Any],
    *,
    examples: int = 200,
    measured: Mapping[str, SearchStrategy[float]] | None = None,
    hyper: Mapping[str, Hyper] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Report:
    """Check a callback in simulated trainings: that it is pure, saves and resumes, and says what it means.

    The names of the checks, and what each looks for, are in `CHECKS`.

    >>> from fsm_train.callbacks import early_stopping
    >>> report = check_callback(early_stopping(patience=2), examples=5)
    >>> len(report.passed) == len(CHECKS)
    True

    Args:
        callback: the callback to check.
        examples: number of trainings.
        measured: strategies for the values of metrics and facts, by name. By default any number, also NaN.
        hyper: the hyper-parameters of the optimizer. By default lr, and those of torch's optimizers that
            the callback reads.
        expected_failures: the reason, by name of the check that the callback is known to fail.

    Raises:
        CallbackCheckError: it fails a check that it is not expected to fail, or passes one that it is expected
            to fail. The message has what is wrong, the smallest example, and how to mend it.
    """
    expected = _with_current_names(expected_failures or {})
    inspection = Inspection(callback, examples, measured, hyper)
    began = time.perf_counter()
    failed = {name: inspection.text(name) for name in inspection.failures if name not in expected}
    not_judged = {name: why for name in CHECKS if (why := inspection.not_judged(name)) and name not in expected}
    failed |= {
        name: f"it was expected to fail ({why}), and passes: leave it out of expected_failures"
        for name, why in expected.items()
        if name not in inspection.failures and not inspection.not_judged(name)
    }
    passed = tuple(name for name in CHECKS if name not in (failed.keys() | not_judged.keys() | expected.keys()))
    seconds = time.perf_counter() - began
    report = Report(callback.name, examples, inspection.consultations, seconds, passed, failed, expected, not_judged)
    if failed:
        raise CallbackCheckError(report)
    return report


def callback_checks(
    callback: Callback[Any],
    *,
    examples: int = 200,
    measured: Mapping[str, SearchStrategy[float]] | None = None,
    hyper: Mapping[str, Hyper] | None = None,
) -> Iterator[Check]:
    """The checks of a callback, one by one. The first call runs the trainings for all of them.

    >>> from fsm_train.callbacks import clip_grad_norm
    >>> for check in callback_checks(clip_grad_norm(1.0), examples=5):
    ...     check()

    Args:
        callback: the callback to check.
        examples: as for `check_callback`.
        measured: as for `check_callback`.
        hyper: as for `check_callback`.
    """
    inspection = Inspection(callback, examples, measured, hyper)
    for name, law in CHECKS.items():
        yield Check(name, law.sentence, callback, inspection)


def parametrize_with_checks(
    callbacks: Iterable[Callback[Any]],
    *,
    examples: int = 200,
    measured: Mapping[str, SearchStrategy[float]] | None = None,
    hyper: Mapping[str, Hyper] | None = None,
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
) -> Callable[[_F], _F]:
    """For pytest: a test for each check of each callback, under its own name.

    ```python
    @parametrize_with_checks([early_stopping(), my_callback()])
    def test_callbacks(check):
        check()
    ```

    >>> from fsm_train.callbacks import accumulate, early_stopping
    >>> @parametrize_with_checks([early_stopping(), accumulate(4)])
    ... def test_my_callbacks(check):
    ...     check()

    Args:
        callbacks: the callbacks to check, with different names.
        examples: as for `check_callback`.
        measured: as for `check_callback`.
        hyper: as for `check_callback`.
        expected_failures: for each callback's name the checks that it is known to fail, with reasons. They are
            strict: a check that passes is a failure.

    Raises:
        ValueError: expected_failures names an unknown callback or check.
    """
    import pytest

    checked = check_names(callbacks)
    expected = dict(expected_failures or {})
    for unknown in expected.keys() - {callback.name for callback in checked}:
        raise ValueError(f"expected_failures names the callback {unknown!r}, which is not among those that are checked")
    cases = []
    for callback in checked:
        reasons = _with_current_names(expected.get(callback.name, {}))
        for check in callback_checks(callback, examples=examples, measured=measured, hyper=hyper):
            marks = []
            if check.name in reasons:
                marks = [pytest.mark.xfail(reason=reasons[check.name], raises=CheckFailedError, strict=True)]
            cases.append(pytest.param(_skipping(check), id=f"{callback.name}-{check.name}", marks=marks))
    return pytest.mark.parametrize("check", cases)


def _skipping(check: Check) -> Callable[[], None]:
    """The check, as a test that is skipped where the check cannot judge."""
    import pytest

    @functools.wraps(check.__call__)
    def skipping() -> None:
        try:
            check()
        except NotJudgedError as why:
            pytest.skip(str(why))

    return skipping


def _with_current_names(expected: Mapping[str, str]) -> Mapping[str, str]:
    """The expected failures, by names that the checks have today."""
    renamed = {_FORMER_NAMES.get(name, name): why for name, why in expected.items()}
    for name in renamed:
        if name not in CHECKS:
            raise ValueError(f"{name!r} is no check; the checks are {', '.join(CHECKS)}")
    return renamed


_FORMER_NAMES = {
    "keeps_its_word": "honours_declarations",
    "minds_its_own_business": "ignores_other_callbacks",
    "answers_the_same_elsewhere": "same_in_new_process",
    "takes_no_time": "is_fast",
}
"""Checks by the names that they had in 0.1."""
