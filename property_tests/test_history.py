"""A history does what the tuple of its items does, however the others that it shares a list with went on."""

from __future__ import annotations

import pickle
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from fsm_train import Phase, Plan, State
from fsm_train.core import history as history_module
from fsm_train.core.history import History

Pair = tuple[History[Any], tuple[Any, ...]]
items = st.tuples(st.integers(0, 9).map(lambda value: {"loss": float(value)}))
cuts = st.slices(6) | st.slices(3)


class HistoriesAndTuples(RuleBasedStateMachine):
    """Any sequence of operations on any version so far, done to a history and to its model, a tuple."""

    versions = Bundle("versions")

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[Pair] = []

    def pair(self, history: History[Any], model: tuple[Any, ...]) -> Pair:
        self.pairs.append((history, model))
        return history, model

    @rule(target=versions, model=st.lists(items, max_size=3).map(lambda parts: sum(parts, ())))
    def begin(self, model: tuple[Any, ...]) -> Pair:
        return self.pair(History(model), model)

    @rule(target=versions, version=versions, more=items)
    def append(self, version: Pair, more: tuple[Any, ...]) -> Pair:
        return self.pair(version[0] + more, version[1] + more)

    @rule(target=versions, version=versions, cut=cuts)
    def slice(self, version: Pair, cut: slice) -> Pair:
        return self.pair(version[0][cut], version[1][cut])

    @rule(target=versions, version=versions, other=versions)
    def join(self, version: Pair, other: Pair) -> Any:
        if len(version[1]) + len(other[1]) > 30:
            return multiple()
        return self.pair(version[0] + other[0], version[1] + other[1])

    @rule(target=versions, version=versions, more=items)
    def put_before(self, version: Pair, more: tuple[Any, ...]) -> Pair:
        return self.pair(more + version[0], more + version[1])

    @rule(target=versions, version=versions)
    def pickled(self, version: Pair) -> Pair:
        return self.pair(pickle.loads(pickle.dumps(version[0])), version[1])

    @rule(target=versions, version=versions, as_tuple=st.booleans())
    def evolve(self, version: Pair, as_tuple: bool) -> Pair:
        state = attrs.evolve(State(Phase.DONE, Plan(1)), history=version[1] if as_tuple else version[0])
        return self.pair(state.history, version[1])

    @invariant()
    def each_is_its_model(self) -> None:
        for history, model in self.pairs:
            assert (history == model, len(history), tuple(history), [*reversed(history)]) == (
                True,
                len(model),
                model,
                [*reversed(model)],
            )
            assert all(history[i] == model[i] == history[i - len(model)] for i in range(len(model)))


TestHistoriesAndTuples = HistoriesAndTuples.TestCase


def appends_in_place(history: History[Any], other: Any) -> History[Any]:
    """The broken one: an older version takes the place of what came after it."""
    history._items[history._length :] = other
    return history_module._prefix(history._items, history._length + len(other))


def never_copies(history: History[Any], other: Any) -> History[Any]:
    """The broken one: it appends behind what another version has appended."""
    history._items.extend(other)
    return history_module._prefix(history._items, history._length + len(other))


@pytest.mark.parametrize("broken", [appends_in_place, never_copies])
def test_a_list_that_is_written_over_is_caught(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    """The property has teeth: versions that share a list and change it are found."""
    monkeypatch.setattr(History, "__add__", broken)

    with pytest.raises((AssertionError, IndexError)):
        run_state_machine_as_test(HistoriesAndTuples, settings=settings(report_multiple_bugs=False))  # type: ignore[no-untyped-call]
