"""Functions sent to other processes, and what they answer there."""

from __future__ import annotations

import functools
import importlib
import io
import math
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Phase, State, Transition
from fsm_train.testing import at
from fsm_train.testing.consultation import Failure, same_response
from fsm_train.testing.fresh_process import (
    HASH_SEEDS,
    CannotBeSentError,
    FunctionPickler,
    answers_in_new_processes,
    main,
)
from tests.warm_answers import WarmAnswers

STATE = at(Phase.EPOCH_END, valid_loss=math.nan)


def by_name(state: State, memory: object) -> Transition:
    return Transition(reason=f"{state.phase.value} {memory}")


def made_here(factor: float) -> Callable[[State, Any], Transition]:
    """A function with all that makes sending one hard: a closure, helpers that call each other, a cache, defaults."""

    @functools.lru_cache(maxsize=4)
    def even(number: int) -> bool:
        return number == 0 or odd(number - 1)

    def odd(number: int) -> bool:
        return number != 0 and even(number - 1)

    def decide(state: State, memory: int, /, scale: float = 2.0, *, name: str = "it") -> Transition:
        if memory > 5:
            raise ValueError(f"too much: {memory}")
        values = [math.floor(factor * scale * i) for i in range(memory)]
        return Transition(memory=sum(values), reason=f"{name} is {'even' if even(memory) else 'odd'}")

    return decide


def unassigned() -> Callable[[State, Any], None]:
    def decide(state: State, memory: object) -> None:
        later  # noqa: B018

    if False:
        later = 0
    return decide


def in_this_process(decide: Callable[..., Any], *questions: tuple[object, object]) -> Any:
    sent, answered = io.BytesIO(), io.BytesIO()
    FunctionPickler(sent).dump((decide, list(questions)))
    main(io.BytesIO(sent.getvalue()), answered)
    return pickle.loads(answered.getvalue())


@pytest.fixture(params=["started", "forked"])
def answers_elsewhere(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """As users have it, and as most tests have it."""
    if request.param == "started":
        yield answers_in_new_processes
    else:
        with WarmAnswers() as forked:
            yield forked


@pytest.mark.parametrize("decide", [by_name, made_here(1.5)])
def test_functions_are_sent(decide: Callable[..., Any], answers_elsewhere: Callable[..., Any]) -> None:
    """A function that can be imported, and one that cannot, answer elsewhere what they answer here."""
    (answer,) = in_this_process(decide, (STATE, 3))
    elsewhere = answers_elsewhere(decide, [(STATE, 3), (STATE, 4)])

    assert answer == decide(STATE, 3)
    assert elsewhere == [[decide(STATE, 3), decide(STATE, 4)]] * len(HASH_SEEDS)


def test_errors_are_sent_back() -> None:
    """How it raises comes back, without the error itself, which may not be able to travel."""
    raised, unbound = in_this_process(made_here(1.0), (STATE, 6))[0], in_this_process(unassigned(), (STATE, 0))[0]

    assert isinstance(raised, Failure)
    assert (raised.kind, raised.text, raised.deliberate) == ("ValueError", "too much: 6", True)
    assert unbound.kind == "NameError"
    assert same_response(raised, Failure("ValueError", "too much: 6", Exception(), False))
    assert not same_response(raised, None)


def test_processes_are_new(answers_elsewhere: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """None remembers what was asked before, each has another order of sets of strings, and all know the environment."""
    monkeypatch.setenv("FSM_TRAIN_ASKED", "now")

    def decide(state: State, memory: object) -> Transition:
        asked = getattr(os, "asked_of_fsm_train", 0)
        os.asked_of_fsm_train = asked + 1  # type: ignore[attr-defined]
        return Transition(memory=asked, reason=f"{os.environ['FSM_TRAIN_ASKED']} {hash('lr')}")

    first, again = (answers_elsewhere(decide, [(STATE, None)] * 2) for _ in range(2))
    assert first == again
    assert [answer.memory for answer in first[0]] == [0, 1]
    assert len({answer.reason for answers in first for answer in answers}) == len(HASH_SEEDS)
    assert not hasattr(os, "asked_of_fsm_train")


def test_forked_ones_find_the_same_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where they are looked for elsewhere by now, processes are started anew."""
    (tmp_path / "made_by_a_test.py").write_text("def decide(state, memory): return None")
    with WarmAnswers() as forked:
        monkeypatch.syspath_prepend(tmp_path)
        found = importlib.import_module("made_by_a_test")
        assert forked(found.decide, [(STATE, None)]) == [[None]] * len(HASH_SEEDS)


def test_what_cannot_be_sent_says_so(answers_elsewhere: Callable[..., Any]) -> None:
    """A lock in a closure cannot travel; the reason is named."""
    lock = threading.Lock()

    def decide(state: State, memory: object) -> None:
        assert lock

    with pytest.raises(CannotBeSentError, match=r"it cannot be sent to another process: .*lock"):
        answers_elsewhere(decide, [(STATE, None)])


class Unreadable:
    def __reduce__(self) -> Any:
        return _boom, ()


def _boom() -> None:
    raise OSError("made for one process alone")


def test_what_cannot_be_read_there_says_so(answers_elsewhere: Callable[..., Any]) -> None:
    """What goes wrong in the other process is what is told of it."""
    unreadable = Unreadable()

    def decide(state: State, memory: object) -> None:
        assert unreadable

    with pytest.raises(CannotBeSentError, match="cannot be asked in another process: OSError: made for one process"):
        answers_elsewhere(decide, [(STATE, None)])
