"""Laws of a rhythm: it says of each moment who is due, as asking each callback does, and how long that stays so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import given
from hypothesis import strategies as st

from fsm_train import Phase, on
from fsm_train.core.callback import is_due
from fsm_train.core.phase import BATCH_PHASES, EPOCH_PHASES
from fsm_train.core.rhythm import COUNTED_AT, Rhythm
from fsm_train.core.state import State
from fsm_train.testing import at

SPARSE = [phase for phase in Phase if phase in BATCH_PHASES | EPOCH_PHASES]
everies = st.dictionaries(st.sampled_from(SPARSE), st.lists(st.integers(2, 7), min_size=1, max_size=3), max_size=4)
counters = st.fixed_dictionaries({"iteration": st.integers(0, 60), "epoch": st.integers(0, 15)})


def moment(phase: Phase, counts: Mapping[str, int]) -> State:
    return at(phase, **counts)


def somebody(phase: Phase, every: Iterable[int], counts: Mapping[str, int]) -> bool:
    """Whether one of such callbacks is due, as each of them says."""
    asked = [on(phase, name="a", every=n)(lambda state: None) for n in every]
    return any(is_due(callback, phase, moment(phase, counts)) for callback in asked)


@given(everies, counters)
def test_who_is_due_is_who_says_so(every: dict[Phase, list[int]], counts: dict[str, int]) -> None:
    """Where nothing is counted, by the places until the next count; where something is counted, when asked."""
    rhythm = Rhythm([Phase.SETUP], every)
    places = rhythm.places(moment(Phase.BATCH_BEGIN, counts))
    between = {phase for phase in every if phase not in COUNTED_AT}

    assert places == {Phase.SETUP, *(phase for phase in between if somebody(phase, every[phase], counts))}
    for phase in COUNTED_AT:
        due = somebody(phase, every[phase], counts) if phase in every else None
        assert rhythm.is_due(phase, moment(phase, counts)) is due


@given(everies, counters)
def test_as_long_as_it_says_nothing_changes(every: dict[Phase, list[int]], counts: dict[str, int]) -> None:
    """The places stay the same, and nobody is due at the end of a batch before the last of them."""
    rhythm, now = Rhythm((), every), moment(Phase.BATCH_END, counts)
    for ahead in range(1, min(int(min(rhythm.same_until(now), 99)) - now.iteration, 20)):
        then = moment(Phase.BATCH_END, {**counts, "iteration": now.iteration + ahead})
        assert rhythm.places(then) == rhythm.places(now)
        assert not rhythm.is_due(Phase.BATCH_END, then)


@given(everies, counters)
def test_the_next_who_is_due_is_not_missed(every: dict[Phase, list[int]], counts: dict[str, int]) -> None:
    """The number of batches to it is that of the first one after which somebody of a batch is due; None for never."""
    rhythm, iteration = Rhythm((), every), counts["iteration"]
    of_batches = {phase: numbers for phase, numbers in every.items() if phase in BATCH_PHASES}
    ahead = (
        n
        for n in range(1, 8)
        if any(somebody(phase, numbers, {"iteration": iteration + n}) for phase, numbers in of_batches.items())
    )
    assert rhythm.batches_to_due(iteration) == next(ahead, None)
