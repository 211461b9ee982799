"""Examples that the strategies draw, and the model driven by hand: each condition implies the branch it needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest
from hypothesis import find, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fsm_train import Callback, ClipGradNorm, Flag, Phase, Plan, State, Transition
from fsm_train.testing import MachineModel, simulate
from fsm_train.testing import strategies as our

_T = TypeVar("_T")


def drawn(strategy: SearchStrategy[_T], condition: Callable[[_T], object]) -> _T:
    """The smallest example that fulfils the condition, the same one in each run."""
    repeatable = settings(max_examples=1_000, database=None, deadline=None)
    return find(strategy, lambda value: bool(condition(value)), settings=repeatable, random=random.Random(0))


@pytest.mark.parametrize(("phase", "known"), [(Phase.LOSS_END, False), (Phase.STEP_END, True)])
def test_states_know_what_is_measured_at_their_phase(phase: Phase, known: bool) -> None:
    """`stepped` is a fact of a state after a step, and of none before."""
    assert ("stepped" in drawn(our.states(phase=phase), lambda state: True).facts) is known


def test_states_may_be_at_any_phase() -> None:
    """Without a phase each consulted one can be drawn."""
    assert drawn(our.states(), lambda state: state.phase is Phase.EPOCH_END).batches_over


@pytest.mark.parametrize(
    ("narrow", "condition", "expected"),
    [
        ({"memory": False}, lambda answer: answer.reason, Transition(reason="enough")),
        ({"memory": False, "hyper": ()}, lambda answer: answer.reason, Transition(reason="enough")),
        ({"memory": False, "commands": st.nothing()}, lambda answer: answer.reason, Transition(reason="enough")),
        ({}, lambda answer: answer.memory == 1, Transition(memory=1)),
        (
            {"memory": False, "commands": st.just(ClipGradNorm(2.0))},
            lambda answer: answer.commands,
            Transition(commands=(ClipGradNorm(2.0),)),
        ),
    ],
    ids=["no memory", "no hyper", "no commands", "memory", "commands"],
)
def test_transitions_have_what_is_allowed(
    narrow: Mapping[str, Any], condition: Callable[[Transition], object], expected: Transition
) -> None:
    """An answer has only the parts that the arguments allow; its smallest example has one of them."""
    assert drawn(our.transitions(**narrow), condition) == expected


def test_no_flag_is_raised_where_nothing_reads_it() -> None:
    """At TEARDOWN no flag is read any more, so answers there raise none."""
    answer = drawn(our.transitions(Phase.TEARDOWN), lambda answer: answer.reason)

    assert answer.flags is Flag.NONE


def test_callbacks_answer_by_the_iteration() -> None:
    """Drawn callbacks are consulted and answer, in turn, what was drawn for their phase."""
    some: list[Callback[Any]] = drawn(our.callbacks(), lambda some: simulate(some, batches=3).step < 3)

    assert all(isinstance(callback.decide, our.ScriptedAnswers) for callback in some)


def test_traces_may_be_of_drawn_callbacks() -> None:
    """Without callbacks a trace is of drawn ones."""
    assert drawn(our.traces(), lambda trace: len(trace) > 20).final.phase is Phase.DONE


def test_reachable_states_are_of_one_phase() -> None:
    """With a phase, states are drawn from it alone."""
    state = drawn(our.reachable_states([], phase=Phase.VALID_END), lambda state: state.epoch == 1)

    assert state.phase is Phase.VALID_END


# ------------------------------------------------------------------------- the model, by hand


class _Given:
    """Stands for Hypothesis's `data`: the plan, and an answer by phase."""

    def __init__(self, plan: Plan, answers: Mapping[Phase, Transition] | None = None) -> None:
        self.plan = plan
        self.answers = answers or {}

    def draw(self, strategy: SearchStrategy[Any], label: str) -> Any:
        return self.plan if label == "plan" else self.answers.get(Phase[label])


class _NeedsTheLoss(MachineModel):
    """A model with a callback that reads a fact."""

    def callbacks(self) -> tuple[Callback[Any], ...]:
        return (Callback("reader", (Phase.LOSS_END,), lambda state, _: None, needs=frozenset({"loss"})),)


def driven(model: MachineModel, plan: Plan, *watched: Phase) -> MachineModel:
    model.begin(_Given(plan), set(watched))  # type: ignore[arg-type]
    return model


def test_model_compares_facts_that_are_measured() -> None:
    """The fold is given what was measured for a callback that needs it, and nothing more."""
    model = driven(_NeedsTheLoss(), Plan(epochs=1), Phase.BATCH_END)
    model.go_on_quietly(1)
    assert (model.state.phase, dict(model.state.facts)) == (Phase.LOSS_END, {"batch_size": 32, "loss": 0.0})

    model.go_on_quietly(20)
    assert model.state.phase is Phase.DONE
    model.teardown()


def test_model_goes_on_after_each_end() -> None:
    """A suspended training is resumed, a finished one is extended, and after a failure a new one starts."""
    model = driven(MachineModel(), Plan(epochs=1), Phase.BATCH_END)
    seen: list[State] = []
    model.go_on_quietly(1)
    model.interrupt()
    model.go_on_quietly(20)
    seen.append(model.state)
    model.call_again()
    model.go_on_quietly(20)
    seen.append(model.state)
    model.call_again()
    model.go_on_quietly(1)
    model.fail()
    model.call_again()
    model.go_on(_Given(Plan(epochs=1), {Phase.BATCH_END: Transition(flags=Flag.STOP_TRAINING)}))  # type: ignore[arg-type]
    model.own_laws()
    model.teardown()

    assert [state.phase for state in seen] == [Phase.SUSPENDED, Phase.DONE]
    assert Flag.STOP_TRAINING in model.state.flags
