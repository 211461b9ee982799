"""A history is used as a tuple is, and costs the same however long it is."""

from __future__ import annotations

import copy
import csv
import io
import json
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from fsm_train import Phase, Plan, State
from fsm_train.core.history import NO_EPOCHS, History, as_history
from fsm_train.core.values import FrozenMap, Metrics
from fsm_train.encoding import encode
from fsm_train.testing.differences import same

LOSSES = ({"valid_loss": 1.0}, {"valid_loss": 0.5}, {"valid_loss": 0.25})


def grown(history: Any, *items: Any) -> Any:
    return history + items


def state(history: Any = LOSSES) -> State:
    return State(Phase.DONE, Plan(epochs=3), epoch=3, history=history)


def test_it_is_used_as_a_tuple_is() -> None:
    """Length, items, slices, loops, sums, products, membership and comparisons are those of the tuple."""
    history, model = state().history, LOSSES

    assert (len(history), bool(history), bool(history[:0])) == (3, True, False)
    assert [history[i] for i in (0, 2, -1, -3)] == [model[i] for i in (0, 2, -1, -3)]
    for cut in (slice(None), slice(2), slice(-1, None), slice(-2), slice(None, None, -1), slice(1, 9, 2), slice(9)):
        assert history[cut] == model[cut]
        assert type(history[cut]) is History
    assert (list(history), list(reversed(history))) == (list(model), list(reversed(model)))
    assert (history + model[:1], model[:1] + history, history + history) == (
        model + model[:1],
        model[:1] + model,
        model + model,
    )
    assert (history * 2, 2 * history, history * -1) == (model * 2, model * 2, ())
    assert (history.index(model[1]), history.count(model[1]), model[1] in history, {} in history) == (1, 1, True, False)
    assert (history == model, model == history, history != model, history == list(model)) == (True, True, False, False)
    assert (repr(history), [*history], (*history,)) == (repr(model), [*model], model)
    assert [h["valid_loss"] for h in history] == [1.0, 0.5, 0.25]


def test_its_hash_is_that_of_the_tuple() -> None:
    """So that either finds the other in a dictionary."""
    assert hash(state().history) == hash(tuple(state().history))


@pytest.mark.parametrize("index", [3, -4])
def test_an_item_that_is_not_there_is_an_error(index: int) -> None:
    """Also where a longer history has one there."""
    history = state().history
    assert (history + LOSSES)[3] == LOSSES[0]

    with pytest.raises(IndexError, match=rf"there is no item {index}: the history has 3"):
        history[index]


def test_what_is_no_tuple_is_not_added() -> None:
    """As with tuples; and nothing but a tuple or a history equals it."""
    history: Any = state().history

    for other in ([], 1):
        with pytest.raises(TypeError):
            history + other
        with pytest.raises(TypeError):
            other + history


def test_it_cannot_be_written_to() -> None:
    """Neither an item nor an attribute."""
    history: Any = state().history

    with pytest.raises(TypeError):
        history[0] = {}
    with pytest.raises(AttributeError, match="cannot be written to"):
        history._length = 2
    with pytest.raises(AttributeError, match="cannot be written to"):
        del history._length
    assert history == LOSSES


def test_two_that_grow_from_one_do_not_meet() -> None:
    """The first continues the shared list, the second has one of its own."""
    base = History((1, 2))

    one, other = grown(base, 3), grown(base, 4)

    assert (base, one, other, one[:2] == other[:2], one == other) == ((1, 2), (1, 2, 3), (1, 2, 4), True, False)
    assert (base == one, base == one[:2], base == other[:2]) == (False, True, True)
    assert (grown(one, 5), grown(one[:1], 6)) == ((1, 2, 3, 5), (1, 6))


def test_threads_that_grow_one_history_do_not_meet() -> None:
    """Each has what it appended itself, though all append to the same list."""
    base = History[object]((1, 2))

    def grow(mine: object) -> bool:
        longer = grown(base, mine)
        return longer[-1] is mine and len(longer) == len(base) + 1

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(grow, [object() for _ in range(2000)]))


def test_another_thread_in_between_is_noticed() -> None:
    """What it appended first stays where it is, and this history gets a list of its own."""

    class Interrupted(list[Any]):
        def extend(self, items: Any) -> None:
            super().extend(("theirs",))
            super().extend(items)

    base = History((1, 2))
    object.__setattr__(base, "_items", Interrupted((1, 2)))

    longer = grown(base, "mine")

    assert (base, longer, grown(longer, 3)) == ((1, 2), (1, 2, "mine"), (1, 2, "mine", 3))


def test_copies_are_equal_and_do_not_keep_what_came_later() -> None:
    """Copied, pickled, and with a state; a pickle holds the items up to its own length."""
    history = state().history
    longer = history + tuple({"valid_loss": float(i)} for i in range(1000))

    for copied in (copy.copy(history), copy.deepcopy(history), pickle.loads(pickle.dumps(history))):
        assert (copied, type(copied)) == (LOSSES, History)
    assert len(pickle.dumps(history)) < len(pickle.dumps(longer)) / 10
    assert pickle.loads(pickle.dumps(state())).history == copy.deepcopy(state()).history == LOSSES


def test_a_state_takes_a_tuple() -> None:
    """In the constructor and in `attrs.evolve`; its items are frozen, and a history is taken as it is."""
    first = state()
    again = attrs.evolve(first, history=(*LOSSES, {"valid_loss": 0.125}))

    assert (again.history, type(again.history)) == ((*LOSSES, {"valid_loss": 0.125}), History)
    assert {type(metrics) for metrics in again.history} == {Metrics}
    assert attrs.evolve(first, epoch=4).history is first.history
    frozen = FrozenMap({"a": 1.0})
    assert as_history([frozen])[0] is frozen
    with pytest.raises(TypeError, match="a mapping was expected"):
        state(history=(1,))


def test_it_is_written_as_a_tuple_is() -> None:
    """In JSON by way of `encode` or `list`, and compared to the last bit."""
    assert encode(History((1, 2))) == encode((1, 2))
    assert json.loads(json.dumps(list(state().history))) == list(LOSSES)
    assert same(state().history, tuple(state().history))
    assert not same(state().history, tuple(state().history)[1:])


def test_it_is_what_a_table_is_made_of() -> None:
    """A sequence of dictionaries, as `pandas.DataFrame` takes it: each metric is a column, in the order it came."""
    history = as_history([{"train_loss": 2.0}, {"train_loss": 1.0, "valid_loss": 0.5}])

    assert isinstance(history, Sequence)
    assert all(isinstance(metrics, dict) for metrics in history)
    with io.StringIO() as table:
        writer = csv.DictWriter(table, dict.fromkeys(name for metrics in history for name in metrics))
        writer.writeheader()
        writer.writerows(history)
        assert table.getvalue().split() == ["train_loss,valid_loss", "2.0,", "1.0,0.5"]


def test_what_grows_from_nothing_is_not_kept_alive() -> None:
    """Each training begins with the same empty history."""
    first, second = grown(NO_EPOCHS, 1), grown(state(history=()).history, 2)

    assert (first, second, NO_EPOCHS, NO_EPOCHS._items) == ((1,), (2,), (), [])
    assert State(Phase.READY, Plan(1)).history._items == []


def test_growing_copies_nothing() -> None:
    """A hundred thousand steps make one list, which all of the histories share."""
    history = first = History((0,))
    for i in range(1, 100_000):
        history += (i,)

    assert history._items is first._items is history[:50]._items
    assert (len(history), len(first), history[-1]) == (100_000, 1, 99_999)
