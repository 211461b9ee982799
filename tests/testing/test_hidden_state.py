"""Changes of what a function keeps outside of its arguments, and copies of functions."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from fsm_train.testing import hidden_state
from fsm_train.testing.hidden_state import changes, fresh, snapshot

TOTAL = 0


class Box:
    kept = 0

    def __init__(self) -> None:
        self.inside = [0]


@attrs.define
class Slots:
    value: int = 0


def _endless() -> Iterator[int]:
    at = 0
    while True:
        at += 1
        yield at


def changed(function: Callable[..., object]) -> list[str]:
    before = snapshot(function)
    function()
    return list(changes(before, snapshot(function)))


def _adding_to(kept: Any, add: Callable[[Any], object]) -> Callable[[], None]:
    def function() -> None:
        add(kept)

    return function


@pytest.mark.parametrize(
    ("kept", "add", "where"),
    [
        ([], lambda kept: kept.append(1), "item 0 of the variable 'kept'"),
        ({"a": 1}, lambda kept: kept.update(a=2), "item 'a' of the variable 'kept', from 1 to 2"),
        ({1}, lambda kept: kept.add(2), "its members of the variable 'kept'"),
        (Box(), lambda kept: kept.inside.append(1), "item 1 of attribute 'inside' of the variable 'kept'"),
        (Slots(), lambda kept: setattr(kept, "value", 3), "attribute 'value' of the variable 'kept', from 0 to 3"),
        (random.Random(0), lambda kept: kept.random(), "its state of the variable 'kept'"),
        (_endless(), next, "its 'at' of the variable 'kept', from 1 to 2"),
        (iter([1, 2]), next, "its position of the variable 'kept'"),
        (bytearray(b"a"), lambda kept: kept.extend(b"b"), "its position of the variable 'kept'"),
        (np.zeros(2), lambda kept: kept.fill(1), "its numbers of the variable 'kept'"),
    ],
)
def test_changes_are_found(kept: Any, add: Callable[[Any], object], where: str) -> None:
    """Whatever is changed in a closure is found, and named by where it is kept."""
    function = _adding_to(kept, add)
    if isinstance(kept, Iterator):
        next(kept)

    assert any(line.startswith(where) for line in changed(function)), changed(function)


def test_changes_of_globals_defaults_and_attributes() -> None:
    """So is what is changed in a global, a default argument, an attribute of the function or of a class."""

    def rebinds() -> None:
        global TOTAL
        TOTAL += 1

    def default(seen: list[int] = []) -> None:  # noqa: B006
        seen.append(1)

    def keyword(*, seen: dict[str, int] = {}) -> None:  # noqa: B006
        seen["a"] = 1

    def attribute() -> None:
        attribute.calls = getattr(attribute, "calls", 0) + 1  # type: ignore[attr-defined]

    def of_class() -> None:
        Box.kept += 1

    assert changed(rebinds) == ["the global 'TOTAL', from 0 to 1"]
    assert [line.split(",")[0] for line in changed(default)] == ["item 0 of a default argument"]
    assert [line.split(",")[0] for line in changed(keyword)] == ["item 'a' of a default argument"]
    assert changed(attribute) == ["the attribute 'calls' of the function"]
    assert changed(of_class) == ["attribute 'kept' of the global 'Box', from 0 to 1"]


def test_variable_that_is_bound_later() -> None:
    """A variable that was never assigned is one; assigning it is a change."""

    def function() -> None:
        nonlocal later
        later = 1

    assert snapshot(function)
    if False:
        later = 0  # so that it is a variable of this function
    assert [line.split(",")[0] for line in changed(function)] == ["the variable 'later'"]


def test_exhausted_generator_is_somewhere() -> None:
    """A generator that has come to its end is in no frame any more."""
    generator = (i for i in [1])
    next(generator)

    assert changed(_adding_to(generator, lambda kept: next(kept, None)))


def test_looking_has_an_end() -> None:
    """What is large or deep is looked at in part."""
    large = list(range(100_000))
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]

    assert len(snapshot(_adding_to((large, deep), len))) <= 2_001


@functools.cache
def _memoized(number: int) -> int:
    return number


def test_memoizing_changes_nothing() -> None:
    """A function that remembers results of a pure one is pure."""
    assert changed(lambda: _memoized(len("abc"))) == []


def test_fresh_functions_share_nothing() -> None:
    """A fresh copy begins where the original was, also through functions that call each other."""
    count = 0

    def inner(by: int = 1) -> int:
        nonlocal count
        count += by
        return count if count % 2 else outer()

    def outer() -> int:
        return inner()

    outer.note = [1]  # type: ignore[attr-defined]
    copied = fresh(outer)

    assert (copied(), copied(), copied()) == (1, 3, 5)
    assert count == 0
    assert copied.note == [1]  # type: ignore[attr-defined]
    assert copied.note is not outer.note  # type: ignore[attr-defined]


def test_fresh_functions_share_what_cannot_be_copied() -> None:
    """A generator cannot be copied, so it is shared; an unassigned variable stays unassigned."""
    endless = _endless()

    def function() -> int:
        return next(endless) if endless else later

    if False:
        later = 0
    assert (fresh(function)(), fresh(function)()) == (1, 2)


def test_what_a_cache_remembers_is_no_change() -> None:
    """A result that is on one side alone was remembered or forgotten; one that changed itself is a change."""
    result = ("seen", f"{hidden_state._CACHED}1")

    assert list(changes({}, {result: 3})) == []
    assert list(changes({result: 3}, {})) == []
    assert list(changes({result: 3}, {result: 4})) == ["the cached result 1 of seen"]


@pytest.mark.parametrize("tensor", [torch.ones(2).to_sparse(), torch.ones(2, device="meta")])
def test_tensors_without_numbers_to_read_are_counted(tensor: torch.Tensor) -> None:
    """Sparse ones and those of the device meta: each change in place is one."""
    before = hidden_state._numbers(tensor)
    assert hidden_state._numbers(tensor) == before
    tensor.mul_(2)
    assert hidden_state._numbers(tensor) != before
