"""The checks of a callback: each sees what it is for, and the library passes them all."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import strategies as st

from fsm_train import Callback, Flag, Phase, State, Transition, callbacks, on
from fsm_train.callbacks import clip_grad_norm, early_stopping
from fsm_train.testing import (
    CHECKS,
    CallbackCheckError,
    CheckFailedError,
    NotJudgedError,
    callback_checks,
    check_callback,
    parametrize_with_checks,
)
from fsm_train.testing.training import Training, consultations_of
from tests.how_long import THOROUGH
from tests.testing.common_mistakes import MISTAKES
from tests.testing.library_examples import EXAMPLES, EXPECTED
from tests.testing.mutant_callbacks import MUTANTS, keeps_a_list

A_FEW = 200 if THOROUGH else 12


def report_of(callback: Callback[Any], **settings: Any) -> Any:
    with pytest.raises(CallbackCheckError) as caught:
        check_callback(callback, **settings)
    return caught.value.report


def test_every_check_has_a_mutant() -> None:
    """There is no check that nothing proves."""
    assert MUTANTS.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_fails_its_check_and_no_other(name: str) -> None:
    """The check finds what is wrong, with an example and advice; all others pass or say that they wait for it."""
    report = report_of(MUTANTS[name], examples=20)

    assert list(report.failed) == [name]
    assert "Example: " in report.failed[name]
    assert f"Mend: {CHECKS[name].mend}" in report.failed[name]
    assert all(re.fullmatch("it fails .*", why) for why in report.not_judged.values())
    assert len(report.passed) + len(report.not_judged) + 1 == len(CHECKS)


@pytest.mark.unmeasured
@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_mistake_in_a_hurry_is_explained(make: Callable[[], Callback[Any]]) -> None:
    """Each plausible wrong callback is caught, by one check, with a sentence that says what to do."""
    check, sentence = MISTAKES[make]
    if check in CHECKS:
        report = report_of(make(), examples=60)
        assert list(report.failed) == [check]
        assert re.search(sentence, report.failed[check], re.DOTALL)
    else:
        with pytest.raises(TypeError, match=sentence):
            make()


TO_FAIL = {"checkpoint": 50, "suspend_after": 50, "swa": 200}
"""As many trainings show what is expected to fail."""


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", callbacks.__all__)
def test_library_passes_all_checks(name: str) -> None:
    """Every callback of the library passes every check; what it does on purpose is listed with the reason."""
    assert name in EXAMPLES, f"tests/testing/library.py has no example of {name}: add one, so that it is checked"
    for make in EXAMPLES[name]:
        examples = max(TO_FAIL.get(name, 0), A_FEW)
        report = check_callback(make(), examples=examples, expected_failures=EXPECTED.get(name))
        waiting = {check for check in CHECKS if {*CHECKS[check].after} & {*EXPECTED.get(name, ())}}
        assert report.not_judged.keys() == waiting


def test_error_is_read_from_top_to_bottom() -> None:
    """It says who fails what, shows the smallest example as a call to try, and says how to mend it."""

    @on(Phase.BATCH_END, memory=0)
    def stop(state: State, batches: int) -> Transition | None:
        return Transition(memory=batches + 1, flags=Flag.SKIP_STEP if batches == 1 else Flag.NONE)

    with pytest.raises(CallbackCheckError) as caught:
        check_callback(stop, examples=30)

    text = str(caught.value)
    assert text.startswith("callback 'stop' fails 1 of 26 checks, after ")
    assert (
        "1. flags_are_read: it raised SKIP_STEP at BATCH_END, where nothing reads it any more; do so at one of: SETUP, "
    ) in text
    assert (
        "   Example: stop(at(Phase.BATCH_END, batch=2, iteration=2, step=2), 1)\n"
        "   Mend: Raise the flag at one of the phases where something reads it before it falls."
    ) in text


def test_example_of_a_whole_training_is_small() -> None:
    """Where the state alone does not show it, the training is shown, without what is as always."""
    text = report_of(MUTANTS["goes_on_as_before"], examples=30).failed["goes_on_as_before"]

    assert "in Training(epochs=2, losses=(1.0,), metrics=" in text or "in Training(losses=(1.0,), metrics=" in text
    assert "forced_flags" not in text


def test_several_mistakes_are_all_reported() -> None:
    """One error lists every check that fails; those that cannot be judged are named with the reason."""
    seen: list[str] = []

    @on(Phase.BATCH_END)
    def many(state: State) -> Transition:
        seen.append(state.reason)
        time.time()
        return Transition(hyper={"rate": 1.0}, flags=Flag.SKIP_BATCH)

    report = report_of(many, examples=5)

    assert list(report.failed) == ["flags_are_read", "keys_exist", "keeps_nothing_hidden", "reads_no_clock"]
    assert report.not_judged["goes_on_as_before"] == "it fails keeps_nothing_hidden"
    assert "not judged, since it fails keeps_nothing_hidden: answers_the_same_twice, " in str(report)


def test_checks_one_by_one() -> None:
    """Each check is called by itself, says what it looks for, and raises what it finds."""
    failed, waiting = [], []
    for check in callback_checks(keeps_a_list(), examples=5):
        try:
            check()
        except CheckFailedError as error:
            failed.append((str(check), str(error).splitlines()[0]))
        except NotJudgedError:
            waiting.append(check.name)
        assert check.sentence == CHECKS[check.name].sentence
        assert check.callback.name == "keeps_a_list"

    assert failed == [("keeps_nothing_hidden", "it changed item 0 of the variable 'seen'")]
    assert {"answers_the_same_twice", "goes_on_as_before"} <= set(waiting)


def test_expected_failures_are_strict() -> None:
    """A check that is expected to fail is no error; one that passes all the same is."""
    known = {"keeps_nothing_hidden": "it counts for its author"}
    report = check_callback(keeps_a_list(), examples=5, expected_failures=known)
    assert report.expected == known
    assert "keeps_nothing_hidden" not in report.passed

    report = report_of(clip_grad_norm(1.0), examples=5, expected_failures=known)
    assert report.failed == {
        "keeps_nothing_hidden": (
            "it was expected to fail (it counts for its author), and passes: leave it out of expected_failures"
        )
    }


def test_unknown_names_are_refused() -> None:
    """A misspelt check, or a callback that is not there, is a mistake."""
    with pytest.raises(ValueError, match="'reads_clock' is no check; the checks are answers_with_transitions, "):
        check_callback(clip_grad_norm(1.0), expected_failures={"reads_clock": "why not"})
    with pytest.raises(ValueError, match="names the callback 'clip', which is not among"):
        parametrize_with_checks([clip_grad_norm(1.0)], expected_failures={"clip": {}})
    with pytest.raises(ValueError, match="examples=0: look at one training at least"):
        check_callback(clip_grad_norm(1.0), examples=0)
    with pytest.raises(TypeError, match="is no callback .call it: it is a factory."):
        check_callback(clip_grad_norm)  # type: ignore[arg-type]


def test_former_names_of_checks_are_known() -> None:
    """A check that was renamed can be expected to fail by its former name too."""
    mutant = MUTANTS["honours_declarations"]
    report = check_callback(mutant, examples=3, expected_failures={"keeps_its_word": "a mutant"})

    assert report.expected == {"honours_declarations": "a mutant"}


def test_needs_that_cannot_be_measured_there() -> None:
    """What keeps a training from beginning is the one thing that is said."""

    @on(Phase.EPOCH_END, needs={"loss"})
    def look(state: State) -> None:
        return None

    report = report_of(look, examples=5)

    assert list(report.failed) == ["needs_what_it_reads"]
    assert "needs the fact 'loss' at epoch_end, but it is known only at" in report.failed["needs_what_it_reads"]
    assert set(report.not_judged.values()) == {"no training can begin with what it needs"}


@parametrize_with_checks(
    [early_stopping(patience=1), keeps_a_list()],
    examples=5,
    expected_failures={"keeps_a_list": {"keeps_nothing_hidden": "a mutant"}},
)
def test_parametrized(check: Callable[[], None]) -> None:
    """Each check of each callback is a test of its own; what is expected to fail does."""
    check()


def test_parametrized_tests_have_names() -> None:
    """The id of each test is the name of the callback and that of the check."""
    (mark,) = test_parametrized.pytestmark  # type: ignore[attr-defined]
    ids = [case.id for case in mark.args[1]]

    assert ids[:2] == ["early_stopping-answers_with_transitions", "early_stopping-flags_are_read"]
    assert len(ids) == 2 * len(CHECKS)
    marks = {case.id: [m.kwargs for m in case.marks] for case in mark.args[1] if case.marks}
    assert marks == {
        "keeps_a_list-keeps_nothing_hidden": [{"reason": "a mutant", "raises": CheckFailedError, "strict": True}]
    }


def test_what_is_measured_can_be_said() -> None:
    """A callback that only makes sense for some values of a metric is shown no others."""

    @on(Phase.EPOCH_END)
    def report(state: State) -> Transition:
        return Transition(reason=f"{int(100 * state.metrics['valid_accuracy'])} %")

    assert list(report_of(report, examples=30).failed) == ["answers_with_transitions"]  # int of NaN
    assert check_callback(report, examples=5, measured={"valid_accuracy": st.floats(0, 1)}).passed


def test_hyper_parameters_can_be_said() -> None:
    """With hyper= there are these and no others; without it there are those of torch that are asked for."""

    @on(Phase.EPOCH_BEGIN)
    def warm(state: State) -> Transition:
        momentum = state.hyper["momentum"]
        return Transition(hyper={"momentum": momentum})

    assert len(check_callback(warm, examples=5).passed) == len(CHECKS)
    report = report_of(warm, examples=5, hyper={"lr": 0.1})
    assert report.failed["keys_exist"].startswith("it read 'momentum', but the hyper-parameters are lr\n")


def test_refusing_in_words_is_no_crash() -> None:
    """A callback may raise when it says why; an assertion or a slip is a crash."""

    @on(Phase.EPOCH_END)
    def refuse(state: State) -> None:
        if state.epoch == 2:
            raise RuntimeError("two epochs are one too many for this schedule: give a plan of one")

    @on(Phase.EPOCH_END)
    def assume(state: State) -> None:
        assert state.epoch != 2

    assert check_callback(refuse, examples=10).failed == {}
    assert "it raised AssertionError: " in report_of(assume, examples=10).failed["answers_with_transitions"]


def test_metric_that_is_not_named() -> None:
    """An error about a missing metric that does not say which is not clear enough."""

    @on(Phase.EPOCH_END)
    def improve(state: State) -> Transition | None:
        best: Any = state.metrics.get("valid_accuracy")
        return Transition(flags=Flag.STOP_TRAINING) if best > 0.5 else None

    text = report_of(improve, examples=20).failed["names_missing_metrics"]
    assert "without the metric 'valid_accuracy' it raises TypeError: " in text


def test_records_of_others_count_as_well() -> None:
    """A command may be a frozen record that holds others; one that can be written to is found inside it."""
    from fsm_train import Command

    @attrs.define
    class Open:
        value: int = 1

    @attrs.frozen
    class Do(Command):
        what: Any
        times: float = float("nan")

    @attrs.frozen(eq=False)
    class Differs(Command):
        what: Any

    def asking(command: Command) -> Callback[Any]:
        @on(Phase.STEP_BEGIN)
        def ask(state: State) -> Transition:
            return Transition(commands=(command,))

        return ask

    def fails(command: Command) -> str:
        return str(report_of(asking(command), examples=3).failed["commands_are_records"].splitlines()[0])

    assert fails(Do((Open(),))) == "its command Do can be written to"
    assert fails(Differs(1)) == "two equal commands Differs do not compare equal"
    check_callback(asking(Do((1, "x"))), examples=3, expected_failures={})


def test_memory_that_looks_frozen_is_tried() -> None:
    """A record whose class only checks what is written is not immutable."""

    @attrs.define
    class Checked:
        value: int = attrs.field(default=0, validator=attrs.validators.instance_of(int))

    @on(Phase.EPOCH_END, memory=0)
    def remember(state: State, seen: object) -> Transition:
        return Transition(memory=Checked(1))

    first = report_of(remember, examples=3).failed["memory_is_immutable"].splitlines()[0]
    assert re.match(r"memory is a Checked|its memory Checked\(value=1\) can be written to", first)


def test_memory_that_cannot_be_made_again() -> None:
    """A record that refuses its own fields is told with what it raises."""

    @attrs.frozen
    class Window:
        size: int = attrs.field(default=1, init=False)

    @on(Phase.EPOCH_END, memory=None)
    def remember(state: State, seen: Window | None) -> Transition:
        return Transition(memory=Window())

    text = report_of(remember, examples=3).failed["memory_survives_json"]
    assert "its memory Window(size=1) cannot be made again: CannotDecodeError: its record Window" in text


def test_groups_are_handled_one_by_one() -> None:
    """With two parameter groups a tuple of another length is found."""

    @on(Phase.EPOCH_BEGIN)
    def three(state: State) -> Transition | None:
        return Transition(hyper={"lr": (0.1, 0.1, 0.1)}) if isinstance(state.hyper["lr"], tuple) else None

    text = report_of(three, examples=3).failed["handles_parameter_groups"]
    assert "with two parameter groups it set lr to 3 values" in text


def test_memory_from_a_file_changes_nothing() -> None:
    """What goes by the identity of its memory is found at the first phase where it is restored."""

    @on(Phase.EPOCH_END, memory=(0.5,))
    def same_object(state: State, seen: tuple[float, ...]) -> Transition | None:
        return Transition(reason="the very same") if seen is same_object.memory else None

    text = report_of(same_object, examples=3).failed["goes_on_as_before"]
    assert "with its memory from a file it answers otherwise: nothing instead of because: the very same" in text


def test_all_memories_are_private() -> None:
    """A callback that iterates over all memories, or counts them, reads those of others."""
    ways: list[Callable[[Any], object]] = [len, list, lambda m: m.keys(), lambda m: m.values(), lambda m: m.items()]
    for way in ways:
        own, all_of_them = _read_by(lambda memories: memories.get("look")), _read_by(way)
        assert (own, all_of_them) == (set(), {""})


def _read_by(way: Callable[[Any], object]) -> set[str]:
    @on(Phase.EPOCH_END, memory=0)
    def look(state: State, mine: int) -> None:
        way(state.memory)

    (consultation,) = consultations_of(look, Training(), hyper={"lr": 0.1}, observe=True)
    return consultation.observations.memories


def test_a_training_that_it_suspends_is_gone_on_with() -> None:
    """As its user would: it is asked to the end."""

    @on(Phase.EPOCH_END)
    def leave(state: State) -> Transition:
        return Transition(flags=Flag.SUSPEND)

    asked = consultations_of(leave, Training(epochs=3), hyper={"lr": 0.1})
    assert [consultation.state.epoch for consultation in asked] == [1, 2, 3]


@pytest.mark.unmeasured
def test_a_check_takes_seconds() -> None:
    """The whole check of one callback takes under 5 seconds on a quiet machine; this only finds the absurd."""
    began = time.process_time()
    report = check_callback(early_stopping(patience=2))

    assert report.examples == 200
    assert report.consultations > 200
    assert report.seconds > time.process_time() - began - 1
    assert time.process_time() - began < 20


def test_what_is_declared_of_a_callback_that_raises_is_not_judged() -> None:
    """An answer that was none agrees with nothing."""

    @on(Phase.EPOCH_END, reads={"epoch"}, raises=Flag.NONE, sets=(), commands=())
    def raising(state: State) -> None:
        if state.epoch > 1:
            raise ArithmeticError("two epochs")

    assert "reads_what_it_declares" in check_callback(raising, examples=12).passed
