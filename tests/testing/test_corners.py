"""Corners of the test tools, which a callback seldom comes by."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import Phase as HypothesisPhase
from hypothesis import find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.stateful import run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

import fsm_train.testing
from _fsm_train_pytestplugin import pytest_assertrepr_compare
from fsm_train import Callback, CallbackError, ClipGradNorm, Command, Flag, Phase, State, Transition, on
from fsm_train.testing import CallbackCheckError, MachineModel, Trace, at, check_callback, inspection, training
from fsm_train.testing import strategies as our
from fsm_train.testing.cases import describe_change
from fsm_train.testing.consultation import Failure
from fsm_train.testing.hidden_state import changes, fresh, snapshot
from fsm_train.testing.json_memory import through_json
from fsm_train.testing.simulation import simulate
from fsm_train.testing.training import Training, consultations_of
from tests.testing.mutant_callbacks import keeps_a_list


def found(callback: Callback[Any], check: str, examples: int = 40) -> str:
    with pytest.raises(CallbackCheckError) as caught:
        check_callback(callback, examples=examples)
    return str(caught.value.report.failed[check].splitlines()[0])


def test_hypothesis_is_asked_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error names the extra."""
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "fsm_train.testing.model")

    with pytest.raises(ImportError, match=r"MachineModel needs Hypothesis: pip install 'fsm-train\[testing\]'"):
        fsm_train.testing.__getattr__("MachineModel")


def test_raising_is_put_into_words() -> None:
    """An answer that is none is shown as the error that it was."""
    raised = Failure("KeyError", "'a'", KeyError("a"), False)

    assert describe_change(raised, None, "then") == "then it answers otherwise: nothing instead of raising KeyError"


def test_fact_that_is_missing_in_a_skipped_batch() -> None:
    """A batch that others skip has no loss: reading it as if it had is found, with what to write instead."""

    @on(Phase.BATCH_END, needs={"loss"})
    def look(state: State) -> Transition:
        return Transition(reason=str(state.facts["loss"]))

    assert "a skipped batch has no loss), read it with .get()" in found(look, "needs_what_it_reads", 200)


def test_mistakes_of_the_tool_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """If taking notes goes wrong, that is an error and no finding."""

    def broken(*_: object) -> None:
        raise RuntimeError("the notebook is full")

    monkeypatch.setattr(training, "ask", broken)
    with pytest.raises(CallbackError, match="the notebook is full"):
        consultations_of(keeps_a_list(), Training(), hyper={"lr": 0.1})


def test_memory_that_cannot_be_saved_is_left_to_its_own_check() -> None:
    """A resumed training has the memory itself if that cannot be read back from JSON."""

    @attrs.frozen
    class Window:
        size: int = attrs.field(default=1, init=False)

    @on(Phase.BATCH_END, memory=None)
    def remember(state: State, seen: object) -> Transition:
        return Transition(memory=Window())

    seen = consultations_of(remember, Training(epochs=2, interrupt_after=2), hyper={"lr": 0.1}, interrupt=True)

    assert [c.memory for c in seen] == [None, Window()]


def test_metrics_are_asked_for_one_after_the_other() -> None:
    """A callback that asks for a metric only once it has found the one before is got to know in several rounds."""

    @on(Phase.EPOCH_END)
    def many(state: State) -> None:
        for i in range(5):
            if f"valid_{i}" not in state.metrics:
                raise LookupError(f"there is no metric 'valid_{i}'")

    assert check_callback(many, examples=5).failed == {}


def test_what_happens_once_is_shown_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it cannot be made to happen again, the first example stays."""

    def nothing(*_: object, **__: object) -> None:
        raise NoSuchExample("gone")

    monkeypatch.setattr(inspection, "find", nothing)

    assert found(keeps_a_list(), "keeps_nothing_hidden").startswith("it changed item 0 of the variable 'seen'")


def test_floats_that_json_has_not() -> None:
    """NaN and infinities come back from JSON."""
    assert repr(through_json((math.nan, -math.inf))) == "(nan, -inf)"


def test_declarations_are_kept() -> None:
    """A flag or a hyper-parameter beyond what is declared is named."""

    @on(Phase.BATCH_END, raises=Flag.STOP_EPOCH)
    def stops(state: State) -> Transition:
        return Transition(flags=Flag.STOP_TRAINING)

    @on(Phase.BATCH_END, sets={"momentum"})
    def sets(state: State) -> Transition:
        return Transition(hyper={"lr": 0.1})

    assert found(stops, "honours_declarations", 3).startswith("it raised Flag.STOP_TRAINING, but declares raises=")
    assert found(sets, "honours_declarations", 3) == "it set lr, but declares sets={'momentum'}"


def test_others_that_look_change_nothing() -> None:
    """What depends on which facts others asked for is found."""

    @on(Phase.BATCH_END)
    def counts_facts(state: State) -> Transition:
        return Transition(reason=f"{len(state.facts)} facts")

    sentence = "among others that only look it answers otherwise: because: 3 facts instead of because: 1 facts"
    assert found(counts_facts, "ignores_other_callbacks", 3) == sentence


def test_state_cannot_be_assigned_to() -> None:
    """Assigning to a field of the state is what it is called, and no crash."""

    @on(Phase.BATCH_END)
    def forward(state: Any) -> None:
        state.epoch = 3

    assert found(forward, "leaves_inputs_alone", 3) == (
        "it tried to write to what it was given: a state is immutable, and epoch cannot be set: a callback returns "
        "a Transition"
    )


class Tweak(Command):
    """The rate is another one afterwards, which only the workload knows."""

    changes_hyper = True


class TweakingModel(MachineModel):
    def commands(self) -> SearchStrategy[Command]:
        return st.just(Tweak())


@pytest.mark.parametrize("model", [MachineModel, TweakingModel])
def test_model_as_it_comes(model: type[MachineModel]) -> None:
    """Without anything of one's own it drives a script; commands may change hyper-parameters behind its back."""
    quick = settings(max_examples=30, deadline=None, database=None, derandomize=True, phases=[HypothesisPhase.generate])

    run_state_machine_as_test(model, settings=quick)


def test_states_after_a_step_say_whether_it_was_taken() -> None:
    """At STEP_END the fact `stepped` is there."""
    assert find(our.states(phase=Phase.STEP_END), lambda state: True).facts["stepped"] in (0.0, 1.0)


def test_wrappers_of_others_are_looked_into() -> None:
    """A decorator's own closure counts as much as what it wraps."""

    def counted(function: Any) -> Any:
        calls: list[int] = []

        @functools.wraps(function)
        def wrapper() -> Any:
            calls.append(1)
            return function()

        return wrapper

    function = counted(lambda: None)
    before = snapshot(function)
    function()

    assert [line.split(",")[0] for line in changes(before, snapshot(function))] == ["item 0 of the variable 'calls'"]


def test_fresh_functions_still_share_among_themselves() -> None:
    """Two helpers that count in one variable do so in the copy too."""
    count = 0

    def up() -> None:
        nonlocal count
        count += 1

    def twice() -> int:
        up()
        up()
        return count

    assert (fresh(twice)(), fresh(twice)(), count) == (2, 2, 0)


def test_trace_that_is_over_takes_no_notes() -> None:
    """Commands of a TEARDOWN that is no part of the training are not in the trace."""

    @on(Phase.TEARDOWN)
    def clip(state: State) -> Transition:
        return Transition(commands=(ClipGradNorm(1.0),))

    trace = Trace()
    simulate([clip], until=Phase.SETUP, trace=trace)

    assert trace.commands == ()


def test_states_are_compared_field_by_field() -> None:
    """The plugin's lines for two states, and none for anything else."""
    lines = pytest_assertrepr_compare("==", at(Phase.READY, step=1), at(Phase.DONE, step=2))
    values: Sequence[Any] = (1, at(Phase.READY))

    assert lines is not None
    assert lines[2:] == ["step: 1 != 2", "phase: <Phase.READY: 'ready'> != <Phase.DONE: 'done'>"]
    assert [pytest_assertrepr_compare("==", value, 2) for value in values] == [None, None]
