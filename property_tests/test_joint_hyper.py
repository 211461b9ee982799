"""Laws of the numbers of several optimizers: a number is one, by whichever name it is set."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from fsm_train.core.callback import Callback
from fsm_train.core.errors import ConflictError
from fsm_train.core.joint_hyper import concatenated, joined, shared_name, split
from fsm_train.core.merge import Answer, decide
from fsm_train.core.phase import Phase
from fsm_train.core.state import Hyper, Plan, State
from fsm_train.core.transition import Transition

OWNERS = ("muon", "adamw", "lion")
NUMBERS = st.sampled_from([0.25, 0.5, 1.0])


@st.composite
def hypers(draw: st.DrawFn) -> dict[str, Hyper]:
    """The numbers of one to three optimizers, with one to three groups each, and one that belongs to none."""
    owners = OWNERS[: draw(st.integers(1, 3))]
    groups = {owner: draw(st.integers(1, 3)) for owner in owners}
    hyper: dict[str, Hyper] = {"kl": 0.0}
    for name in ("lr", "weight_decay"):
        own = {owner: tuple(draw(NUMBERS) for _ in range(groups[owner])) for owner in owners}
        whole = concatenated(iter(own.values()))
        hyper[name] = whole if len(whole) > 1 else whole[0]
        hyper |= {f"{owner}.{name}": values if len(values) > 1 else values[0] for owner, values in own.items()}
    return hyper


@st.composite
def changes(draw: st.DrawFn, hyper: Mapping[str, Hyper]) -> dict[str, Hyper]:
    """One of the numbers, for all its groups or one value for each."""
    name = draw(st.sampled_from(sorted(hyper)))
    now = hyper[name]
    count = len(now) if isinstance(now, tuple) else 1
    alike = draw(NUMBERS)
    return {name: draw(st.sampled_from([alike, tuple(draw(NUMBERS) for _ in range(count))]))}


def is_consistent(hyper: Mapping[str, Hyper]) -> bool:
    """Whether each number that all have is what they have."""
    for name, value in hyper.items():
        parts = [hyper[other] for other in hyper if shared_name(other) == name]
        if parts and concatenated(iter(parts)) != (value if isinstance(value, tuple) else (value,)):
            return False
    return True


@given(st.data())
def test_both_names_of_a_number_always_agree(data: st.DataObject) -> None:
    """Whatever is set by whichever name, the tuple over all groups is what the optimizers have; the rest stays."""
    hyper = data.draw(hypers())
    wanted = data.draw(changes(hyper))
    own = split(hyper, wanted)
    after = {**hyper, **joined(hyper, own)}

    assert is_consistent(after)
    assert {name for name in hyper if after[name] != hyper[name]} <= {*own, *map(shared_name, own)}
    assert split(after, wanted) == own
    assert {**after, **joined(after, split(after, own))} == after


@given(st.data())
def test_whoever_comes_first_the_decision_is_the_same(data: st.DataObject) -> None:
    """Any order of answers gives the same numbers, or the same conflict."""
    hyper = data.draw(hypers())
    wishes = [data.draw(changes(hyper)) for _ in range(3)]
    answers: list[Answer] = [
        (Callback(name, Phase.STEP_BEGIN, lambda state, memory: None), Transition(hyper=wish))
        for name, wish in zip("abc", wishes, strict=True)
    ]
    state = State(Phase.STEP_BEGIN, Plan(epochs=1), hyper=hyper)

    def outcome(drawn: list[Answer]) -> object:
        try:
            after, decision = decide(state, drawn)
        except ConflictError as error:
            return str(error)
        assert is_consistent(after.hyper)
        assert {**hyper, **decision.hyper} == after.hyper
        return after.hyper

    assert outcome(data.draw(st.permutations(answers))) == outcome(answers)
