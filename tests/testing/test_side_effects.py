"""Side effects are noted while a function runs, however it came by a clock, a file or a generator."""

from __future__ import annotations

import cProfile
import datetime
import os
import random
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fsm_train.testing.side_effects import generators, watched


def effects_of(function: Callable[[], object]) -> set[str]:
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
def test_side_effects_are_noted(function: Callable[[], object], kinds: set[str]) -> None:
    """Clocks, chance, files, the network and the environment are noticed; pure work is not."""
    assert effects_of(function) <= kinds or effects_of(function) == kinds
    assert bool(effects_of(function)) == bool(kinds)


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
    """Python's own profiler, which is written in C, is put back after a function was watched."""
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        assert effects_of(time.time) == {"clock"}
        sorted([2, 1])
    finally:
        profiler.disable()

    assert any("sorted" in str(entry.code) for entry in profiler.getstats())


def test_importing_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is imported inside a function is no file that it reads."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)

    def imports() -> None:
        import colorsys  # noqa: F401

    assert effects_of(imports) == set()


def test_collections_of_garbage_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector does not run inside; afterwards it is on or off as before."""
    import gc

    gc.disable()
    try:
        effects_of(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()
    effects_of(lambda: None)
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
