"""The states of the generators of Python and NumPy, read as bytes: they are what `getstate` and `get_state` give."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.data import raw_states
from fsm_train.data.generators import Generators
from fsm_train.data.raw_states import RawState, numpy_state, python_state

DRAWS: list[Callable[[], object]] = [
    *(random.random, lambda: random.gauss(0, 1), lambda: random.seed(5), lambda: random.getrandbits(40_000)),
    *(np.random.rand, np.random.randn, lambda: np.random.seed(5), lambda: np.random.rand(624)),
]


@given(st.lists(st.sampled_from(DRAWS), max_size=8))
def test_bytes_mean_what_the_library_says(draws: list[Callable[[], object]]) -> None:
    """After any draws, with a normal number that waits and without."""
    for draw in draws:
        draw()
    of_python, of_numpy = python_state(), numpy_state(np)

    assert isinstance(of_python, RawState)
    assert of_python.of_python() == random.getstate()
    assert isinstance(of_numpy, RawState)
    assert _plain(of_numpy.of_numpy()) == _plain(np.random.get_state())
    now = Generators.now()
    following = [draw() for draw in (random.random, lambda: random.gauss(0, 1), np.random.randn)]
    now.put_back()
    assert [draw() for draw in (random.random, lambda: random.gauss(0, 1), np.random.randn)] == following


def test_where_the_words_are_not_found_the_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another Python, with another generator, and if NumPy does not say where they are."""
    monkeypatch.setattr(random, "_inst", random.SystemRandom())
    assert python_state() == random.getstate()
    monkeypatch.setattr(raw_states, "_HERE", False)
    assert raw_states._python_layout.__wrapped__() is None
    assert raw_states._numpy_layout.__wrapped__(np.random) is None
    monkeypatch.setattr(raw_states, "_python_layout", lambda: None)
    monkeypatch.setattr(raw_states, "_numpy_layout", lambda of: None)
    assert python_state() == random.getstate()
    assert _plain(numpy_state(np)) == _plain(np.random.get_state())


def test_words_that_are_elsewhere_are_not_taken_for_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NumPy that keeps its words in another way, and a generator that does not hold its normal number."""
    monkeypatch.setattr(raw_states, "_words_of", lambda bits: (b"", 0))
    assert raw_states._numpy_layout.__wrapped__(np.random) is None
    monkeypatch.undo()
    monkeypatch.setattr(raw_states, "_same_waits", lambda memory, at, waits: False)
    assert raw_states._numpy_layout.__wrapped__(np.random) is None
    monkeypatch.setattr(raw_states, "_INT", raw_states._DOUBLE)
    assert raw_states._python_layout.__wrapped__() is None


def _plain(state: object) -> list[object]:
    assert isinstance(state, tuple)
    return [state[0], state[1].dtype, state[1].tolist(), *state[2:]]
