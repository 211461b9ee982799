"""Laws of merging: what many callbacks want is one decision, whoever comes first."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.core.callback import Callback
from fsm_train.core.errors import CallbackError, ConflictError
from fsm_train.core.merge import Answer, Decision, consult, decide
from fsm_train.core.phase import CONSULTED, Flag, Phase
from fsm_train.core.state import Plan, State
from fsm_train.core.table import READABLE
from fsm_train.core.transition import Transition
from fsm_train.interpreter import run
from property_tests import strategies as our

STATE = State(Phase.EPOCH_END, Plan(epochs=3), hyper={"lr": 0.1, "momentum": (0.9, 0.8)}, has_valid=True)


def nothing(state: State, memory: object) -> None:
    return None


def answers(of: int, hyper: tuple[str, ...] = ("lr", "momentum")) -> st.SearchStrategy[list[Answer]]:
    """The answers of so many callbacks."""
    given = st.tuples(st.integers(-1, 1), our.transitions(hyper=hyper))
    return st.lists(given, min_size=of, max_size=of).map(
        lambda drawn: [
            (Callback(name, Phase.EPOCH_END, nothing, order=order), answer)
            for name, (order, answer) in zip(our.NAMES, drawn, strict=False)
        ]
    )


def wish(name: str, value: float) -> Answer:
    return Callback(name, Phase.EPOCH_END, nothing), Transition(hyper={"momentum": value, "lr": value})


def decided(state: State, drawn: list[Answer]) -> State | None:
    """The state after these answers; None if there is a conflict."""
    try:
        return decide(state, drawn)[0]
    except ConflictError:
        return None


@given(answers(4), st.integers(0, 4))
def test_deciding_in_two_goes_is_deciding_in_one(drawn: list[Answer], first: int) -> None:
    """Wherever answers that do not contradict one another are split, the state after them is the same."""
    together = decided(STATE, drawn)
    if together is not None:
        halfway, _ = decide(STATE, drawn[:first])
        assert attrs.evolve(decide(halfway, drawn[first:])[0], reason="") == attrs.evolve(together, reason="")


@given(answers(4))
def test_what_is_done_for_all_is_what_is_done_for_each(drawn: list[Answer]) -> None:
    """No command and no wish of anybody is lost among those of others, and none is done twice."""
    if decided(STATE, drawn) is None:
        return
    _, whole = decide(STATE, drawn)
    parts = [decide(STATE, [answer])[1] for answer in drawn]
    assert Counter(whole.commands) == Counter(command for part in parts for command in part.commands)
    assert whole.hyper == {name: value for part in parts for name, value in part.hyper.items()}


def test_nobody_decides_nothing() -> None:
    """The state without answers is the very same state, and nothing is to be done."""
    after, decision = decide(STATE, [])
    assert after is STATE
    assert decision == Decision()


@given(answers(1))
def test_deciding_the_same_again_changes_nothing_more(drawn: list[Answer]) -> None:
    """What is asked for twice is asked for once."""
    after, decision = decide(STATE, drawn)
    assert decide(after, drawn) == (after, decision)


@given(answers(4), st.data())
def test_order_of_answers_decides_nothing(drawn: list[Answer], data: st.DataObject) -> None:
    """The decision, the state after it and the conflict, word for word, are those of any other order."""
    positions = {callback.name: i for i, (callback, _) in enumerate(drawn)}

    def outcome(ordered: list[Answer]) -> object:
        try:
            return decide(STATE, ordered, positions)
        except ConflictError as conflict:
            return str(conflict)

    assert outcome(drawn) == outcome(data.draw(st.permutations(drawn)))


@given(answers(4))
def test_commands_are_sorted_by_order_and_position(drawn: list[Answer]) -> None:
    """Commands come by (order, position in the list), those that are last after all others."""
    drawn = [(callback, attrs.evolve(answer, hyper={})) for callback, answer in drawn]
    _, decision = decide(STATE, drawn)

    asked = [(callback.order, command) for callback, answer in drawn for command in answer.commands]
    in_order = sorted(asked, key=lambda ordered: (ordered[1].last, ordered[0]))  # sorting keeps the list's order
    assert list(decision.commands) == [command for _, command in in_order]


@given(st.sampled_from([0.5, 1.0]), st.sampled_from([0.5, 1.0, 2.0]))
def test_two_values_for_one_key_are_a_conflict(one: float, other: float) -> None:
    """Two equal values are none; two different ones are an error that names writers, key, values and phase."""
    drawn = [wish("a", one), wish("b", other)]
    if one == other:
        assert decide(STATE, drawn)[0].hyper["lr"] == one
        return
    with pytest.raises(ConflictError, match=f"at epoch_end 'a' sets lr to {one} and 'b' to {other}"):
        decide(STATE, drawn)


@given(st.permutations([("a", 0.5), ("b", 0.5), ("c", 2.0), ("d", 4.0)]))
def test_conflict_of_many_names_the_same_two(wishes: list[tuple[str, float]]) -> None:
    """Where more than two disagree, the first of them by name are blamed, in whatever order they came."""
    drawn = [wish(name, value) for name, value in wishes]
    with pytest.raises(ConflictError, match=r"at epoch_end 'a' sets lr to 0\.5 and 'c' to 2\.0"):
        decide(STATE, drawn)


@given(answers(4, hyper=("lr",)))
def test_a_decision_contains_every_answer(drawn: list[Answer]) -> None:
    """Every flag is up, every memory is in its place, and whoever stops is among the reasons, once."""
    drawn = [(callback, attrs.evolve(answer, hyper={})) for callback, answer in drawn]
    after, _ = decide(STATE, drawn)

    again, _ = decide(after, drawn)
    assert again == after
    for callback, answer in drawn:
        assert answer.flags in after.flags
        stops = answer.flags & (Flag.STOP_TRAINING | Flag.SUSPEND)
        named = [reason for reason in after.reason.split("; ") if reason.split(":")[0] == callback.name]
        assert len(named) == bool(stops)


@given(our.trainings(), st.data())
def test_order_of_callbacks_changes_nothing(training: our.Training, data: st.DataObject) -> None:
    """Any permutation of the callbacks gives the same final state."""
    permuted = data.draw(st.permutations(training.callbacks))
    assert run(training.start(), permuted) == run(training.start(), training.callbacks)


@pytest.mark.parametrize("phase", CONSULTED)
@pytest.mark.parametrize("flag", Flag)
def test_late_flag_is_refused(flag: Flag, phase: Phase) -> None:
    """A flag that nothing reads any more is an error that names the phases where it would have been read."""
    raiser = Callback("late", phase, lambda state, memory: Transition(flags=flag))
    state = attrs.evolve(STATE, phase=phase)
    if phase in READABLE[flag]:
        assert consult([raiser], state)[0][1].flags is flag
        return
    with pytest.raises(CallbackError, match=rf"'late' at {phase.value} .*{flag.name}") as refused:
        consult([raiser], state)
    assert str(refused.value).endswith(": " + ", ".join(p.value for p in READABLE[flag]))
