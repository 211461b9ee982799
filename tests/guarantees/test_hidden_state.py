"""check_callback finds state wherever a callback can hide it, and clocks and chance however they are read."""

from __future__ import annotations

import array
import collections
import contextvars
import enum
import functools
import io
import itertools
import os
import secrets
import time
import types
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fsm_train import Flag, Phase, State, Transition, on
from fsm_train.testing import CallbackCheckError, check_callback

MEAN = torch.zeros(1)
HALF = torch.zeros(1, dtype=torch.bfloat16)
NET = torch.nn.Linear(1, 1)
NUMBERS = np.zeros(2)
TEXT, BYTES = io.StringIO(), io.BytesIO()
VARIABLE = contextvars.ContextVar("VARIABLE", default=0)
MODULE = types.ModuleType("MODULE")
COUNT, CYCLE, ENUMERATE = itertools.count(), itertools.cycle([0, 1]), enumerate(itertools.count())
ARRAY = array.array("d", [0.0])
CHANCE, TORCH_CHANCE = np.random.default_rng(0), torch.Generator()
PARTIAL = functools.partial(lambda seen: seen.append(1) or len(seen), [])


class Kept:
    """A class whose attribute is changed, and whose method changes a global."""

    n = 0

    def bump(self) -> float:
        NUMBERS[1] += 1
        return float(NUMBERS[1])


KEPT = Kept()


@functools.lru_cache
def cached_list() -> list[int]:
    """A list that each call shares."""
    return []


@functools.lru_cache
def cached_square(x: float) -> tuple[float, ...]:
    """What a pure function may cache."""
    return (x * x,)


def scaled(x: float) -> float:
    """A helper with a constant attribute."""
    return float(x * scaled.factor)  # type: ignore[attr-defined]


scaled.factor = 2.0  # type: ignore[attr-defined]


def counted() -> int:
    """A helper with an attribute that it changes."""
    counted.n += 1  # type: ignore[attr-defined]
    return int(counted.n)  # type: ignore[attr-defined]


counted.n = 0  # type: ignore[attr-defined]


def failed_checks(reads: Callable[[], Any]) -> list[str]:
    """The checks that a callback fails which does this at each batch."""

    @on(Phase.BATCH_END, name="hides")
    def hides(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_EPOCH) if reads() == -1 else None

    try:
        check_callback(hides, examples=1)
    except CallbackCheckError as error:
        return list(error.report.failed)
    return []


HIDDEN: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: MEAN.mul_(0.9).add_(0.1),
    "a tensor of bfloat16": lambda: HALF.add_(1),
    "a parameter of a module": lambda: NET.weight.data.add_(1),
    "an array of NumPy": lambda: NUMBERS.__iadd__(1)[0],
    "an array of the standard library": lambda: ARRAY.append(1.0),
    "a StringIO": lambda: TEXT.write("x"),
    "a BytesIO": lambda: BYTES.write(b"x"),
    "a ContextVar": lambda: VARIABLE.set(VARIABLE.get() + 1),
    "an attribute of a module": lambda: setattr(MODULE, "n", getattr(MODULE, "n", 0) + 1),
    "an attribute of a class": lambda: setattr(Kept, "n", Kept.n + 1),
    "a global of a method": lambda: KEPT.bump(),
    "an attribute of a function": lambda: counted(),
    "an attribute of a class of another package": lambda: setattr(enum.Enum, "hits", getattr(enum.Enum, "hits", 0) + 1),
    "itertools.count": lambda: next(COUNT),
    "itertools.cycle": lambda: next(CYCLE),
    "enumerate": lambda: next(ENUMERATE),
    "a generator of NumPy": lambda: CHANCE.random(),
    "a generator of torch": lambda: torch.rand(1, generator=TORCH_CHANCE),
    "an argument of a partial": lambda: PARTIAL(),
    "a deque": (lambda seen: lambda: seen.append(1))(collections.deque([0], maxlen=3)),
    "a closure over an array": (lambda total: lambda: total.__iadd__(1)[0])(np.zeros(1)),
}


@pytest.mark.parametrize("hides", HIDDEN.values(), ids=HIDDEN)
def test_hidden_state_is_found(hides: Callable[[], Any]) -> None:
    """keeps_nothing_hidden fails, whatever the state is kept in."""
    assert failed_checks(hides) == ["keeps_nothing_hidden"]


def test_list_in_a_cache_is_found() -> None:
    """What a cached function returns is shared between its calls."""
    cached_list()
    assert "keeps_nothing_hidden" in failed_checks(lambda: cached_list().append(1))


@pytest.mark.parametrize(
    ("reads", "check"),
    [
        (lambda: time.strftime("%S"), "reads_no_clock"),
        (lambda: time.localtime().tm_sec, "reads_no_clock"),
        (lambda: time.asctime(), "reads_no_clock"),
        (lambda: time.clock_gettime(0), "reads_no_clock"),
        (lambda: os.times()[0], "reads_no_clock"),
        (lambda: uuid.uuid1().int, "reads_no_clock"),
        (lambda: uuid.uuid4().int, "draws_by_state"),
        (lambda: secrets.randbelow(9), "draws_by_state"),
        (lambda: secrets.token_hex(2), "draws_by_state"),
        (lambda: os.urandom(1), "draws_by_state"),
        (lambda: os.getpid(), "reads_no_environment"),
    ],
)
def test_clock_and_chance_are_found(reads: Callable[[], Any], check: str) -> None:
    """A clock, a source of chance or the process is named by its check."""
    assert check in failed_checks(reads)


def test_constants_pass() -> None:
    """A constant attribute of a helper, a cache of a pure function, and constants of modules are no state.

    All at once: the check asks in three new processes, each of which imports torch for it.
    """
    assert failed_checks(lambda: (scaled(1.0), cached_square(2.0), float(MEAN.numel()), torch.pi)) == []


def test_running_mean_in_a_global_tensor_is_found() -> None:
    """A callback that skips by a running mean in a global tensor behaves otherwise in each simulation: found."""

    @on(Phase.LOSS_END, needs={"loss"})
    def skip_spikes(state: State) -> Transition | None:
        loss = state.facts["loss"]
        if 0 < 10 * MEAN.item() < loss:
            return Transition(flags=Flag.SKIP_BACKWARD)
        if loss < 1e9:
            MEAN.mul_(0.9).add_(0.1 * loss)
        return None

    with pytest.raises(CallbackCheckError) as found:
        check_callback(skip_spikes, examples=50)
    assert "keeps_nothing_hidden" in found.value.report.failed
