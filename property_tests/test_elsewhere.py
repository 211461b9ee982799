"""Any callback of the library, pickled, comes back equal and answers the same; and a pickle that is wrong is caught."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import Callback, Phase, State
from fsm_train.callbacks import grad_noise
from fsm_train.core import origin
from fsm_train.testing import at, strategies
from fsm_train.testing.consultation import ask, same_response
from tests.testing.library_examples import EXAMPLES

LIBRARY = [make for made in EXAMPLES.values() for make in made]


@st.composite
def callbacks_and_states(draw: st.DrawFn) -> tuple[Callback[Any], State]:
    """A callback of the library, and a state at one of its phases."""
    callback = draw(st.sampled_from(LIBRARY))()
    return callback, draw(strategies.states(phase=draw(st.sampled_from(callback.at))))


@given(callbacks_and_states())
def test_any_callback_of_the_library_pickles_and_answers_the_same(drawn: tuple[Callback[Any], State]) -> None:
    """Also one that draws from the state's generator by its name."""
    callback, state = drawn
    back, state_back = pickle.loads(pickle.dumps((callback, state)))

    assert back == callback
    first = ask(callback.decide, state, callback.memory)
    again = ask(back.decide, state_back, back.memory)
    assert same_response(first, again)


def _without_name(make: Callable[..., Any], params: Mapping[str, object], name: str) -> Any:
    """As `call_factory` was: the factory never hears the name, on which its answers may depend."""
    return attrs.evolve(make(**params), name=name)


def test_a_pickle_that_forgets_the_name_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """grad_noise draws by its name: with another one it answers otherwise, though the callbacks are equal."""
    example = (grad_noise(0.1, name="mine"), at(Phase.STEP_BEGIN))
    law = test_any_callback_of_the_library_pickles_and_answers_the_same.hypothesis.inner_test  # type: ignore[attr-defined]
    law(example)
    monkeypatch.setattr(origin, "call_factory", _without_name)
    with pytest.raises(AssertionError):
        law(example)
