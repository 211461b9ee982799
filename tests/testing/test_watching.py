"""What is noticed while a pure function runs: whatever way it came by a clock, a file or a generator."""

from __future__ import annotations

import cProfile
import datetime
import functools
import os
import random
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from fsm_train.testing.hidden import changes, fresh, snapshot
from fsm_train.testing.watching import generators, watched


def deeds(function: Callable[[], object]) -> set[str]:
    notes: list[Any] = []
    with watched(notes):
        function()
    return {kind for kind, _ in notes}


def _read_this_file() -> str:
    return Path(__file__).read_text()


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda: time.time(), {"clock"}),
        (lambda now=time.perf_counter_ns: now(), {"clock"}),
        (lambda: datetime.datetime.now(tz=datetime.UTC), {"clock"}),
        (lambda: datetime.date.today(), {"clock"}),  # noqa: DTZ011
        (lambda: random.random(), {"chance"}),
        (lambda: random.choice([1, 2]), {"chance"}),
        (lambda: random.Random(1).random(), set()),
        (lambda: secrets.token_hex(), {"chance"}),
        (lambda: uuid.uuid4(), {"chance"}),
        (_read_this_file, {"file"}),
        (lambda: Path("stop").exists(), {"file"}),
        (lambda: list(Path(__file__).parent.iterdir()), {"file"}),
        (lambda: subprocess.run(["true"], check=True), {"file", "environment", "clock"}),
        (lambda: socket.socket().close(), {"network"}),
        (lambda: os.environ.get("HOME"), {"environment"}),
        (lambda: os.getenv("HOME"), {"environment"}),
        (lambda: "HOME" in os.environ, {"environment"}),
        (lambda: os.putenv("FSM_TRAIN_TEST", "1"), {"environment"}),
        (lambda: sorted([2, 1]), set()),
    ],
)
def test_deeds_are_noticed(function: Callable[[], object], kinds: set[str]) -> None:
    """Clocks, chance, files, the network and the environment are noticed; pure work is not."""
    assert deeds(function) <= kinds or deeds(function) == kinds
    assert bool(deeds(function)) == bool(kinds)


def test_watching_ends() -> None:
    """Afterwards nothing is noted any more, and a profiler that was there is there again."""
    calls = []

    def profile(frame: object, event: str, argument: object) -> None:
        calls.append(event)

    notes: list[Any] = []
    sys.setprofile(profile)
    try:
        with watched(notes):
            pass
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    time.time()
    os.environ.get("HOME")
    _read_this_file()

    assert notes == []


def test_callbacks_can_be_checked_under_a_profiler() -> None:
    """Python's own profiler, which is written in C, goes on after a function was watched."""
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        assert deeds(time.time) == {"clock"}
        sorted([2, 1])
    finally:
        profiler.disable()

    assert any("sorted" in str(entry.code) for entry in profiler.getstats())


def test_importing_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is imported inside a function is no file that it reads."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)

    def imports() -> None:
        import colorsys  # noqa: F401

    assert deeds(imports) == set()


def test_collections_of_garbage_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked to be told of garbage collections does not run inside; afterwards all is as before."""
    import gc

    gc.disable()
    try:
        deeds(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()
    deeds(lambda: None)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("use", "which"),
    [(random.random, "random"), (np.random.rand, "numpy.random"), (lambda: torch.rand(1), "torch")],
)
def test_generators_are_compared(use: Callable[[], object], which: str) -> None:
    """A global generator that was used is in another state than before, and no other is."""
    before = generators()
    use()
    after = generators()

    assert [name for name in after if after[name] != before[name]] == [which]


def test_generators_of_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy and torch are not imported to look at their generators."""
    monkeypatch.delitem(sys.modules, "numpy.random")
    monkeypatch.delitem(sys.modules, "torch")

    assert generators().keys() == {"random"}


# ------------------------------------------------------------------------------ what is kept elsewhere


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
