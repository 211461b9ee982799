"""Check any callback, as scikit-learn checks any estimator.

A callback is let into a few hundred short simulated trainings, drawn by Hypothesis; each of the laws in
`laws.py` is a check, and what breaks one is shrunk to an example that a person can read. Two checks are
of the callback as a whole: that it answers the same in a fresh process, and how long it takes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
from hypothesis.strategies import SearchStrategy

from ..core.callback import Callback, check_names
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


class CallbackCheckError(AssertionError):
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
        examples: in how many trainings it was looked at.
        consultations: how often it was asked in them, not counting repetitions.
        seconds: how long the checks took.
        passed: the checks that found nothing.
        failed: for each of the others what is wrong.
        expected: for each failure that was expected the reason for it.
        not_judged: for each check that said nothing the reason for it.
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
    """One check of one callback; call it to run it.

    Attributes:
        name: of the check.
        sentence: what it looks for.
        callback: who is checked.

    Raises:
        CheckFailedError: when it is called, and something is wrong.
        NotJudgedError: when it is called, and another check has to pass first.
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
        callback: who is checked.
        examples: in how many trainings.
        measured: what a metric or fact can be, by its name; anything, also NaN, if nothing is said.
        hyper: the hyper-parameters of the optimizer; lr, and of those that torch's optimizers have
            the ones that the callback asks for, if nothing is said.
        expected_failures: checks that this callback is known to fail, each with the reason.

    Raises:
        CallbackCheckError: it fails some checks: each with what is wrong, the smallest example, and how
            to mend it. Also if it passes one that it is expected to fail.
    """
    expected = _known(expected_failures or {})
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
    """The checks of a callback, one by one; what they have in common is done when the first is called.

    >>> from fsm_train.callbacks import clip_grad_norm
    >>> for check in callback_checks(clip_grad_norm(1.0), examples=5):
    ...     check()

    Args:
        callback: who is checked.
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
        callbacks: who is checked; their names are different.
        examples: as for `check_callback`.
        measured: as for `check_callback`.
        hyper: as for `check_callback`.
        expected_failures: by the callback's name the checks that it is known to fail, with the reason.
            They are strict: one that passes all the same is a failure.

    Raises:
        ValueError: expected_failures names a callback or a check that there is not.
    """
    import pytest

    everybody = check_names(callbacks)
    expected = dict(expected_failures or {})
    for unknown in expected.keys() - {callback.name for callback in everybody}:
        raise ValueError(f"expected_failures names the callback {unknown!r}, which is not among those that are checked")
    cases = []
    for callback in everybody:
        reasons = _known(expected.get(callback.name, {}))
        for check in callback_checks(callback, examples=examples, measured=measured, hyper=hyper):
            marks = []
            if check.name in reasons:
                marks = [pytest.mark.xfail(reason=reasons[check.name], raises=CheckFailedError, strict=True)]
            cases.append(pytest.param(_skipping(check), id=f"{callback.name}-{check.name}", marks=marks))
    return pytest.mark.parametrize("check", cases)


def _skipping(check: Check) -> Callable[[], None]:
    """The check, which is skipped where it says nothing."""
    import pytest

    @functools.wraps(check.__call__)
    def skipping() -> None:
        try:
            check()
        except NotJudgedError as why:
            pytest.skip(str(why))

    return skipping


def _known(expected: Mapping[str, str]) -> Mapping[str, str]:
    for name in expected:
        if name not in CHECKS:
            raise ValueError(f"{name!r} is no check; the checks are {', '.join(CHECKS)}")
    return expected
