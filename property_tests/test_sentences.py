"""Any wrong value, at any parameter of an entry point or a callback of the library, ends in an error that names it."""

from __future__ import annotations

import datetime
import decimal
import functools
import inspect
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, State, Supervised, Transition, callbacks, evaluate, extend, find_lr, iterate, run
from fsm_train.ablation import ablate
from fsm_train.callbacks import early_stopping
from fsm_train.core import checks
from fsm_train.interpreter import start
from fsm_train.worlds.scripted import Scripted
from tests.testing.library_examples import EXAMPLES

WRONG: list[Any] = [
    *(3, 2.5, True, None, -1, 0, -0.5, 1j, math.nan, math.inf, decimal.Decimal(1), np.float64(1.5)),
    *("text", b"bytes", pathlib.Path("x"), object(), datetime.timedelta(1), ..., NotImplemented, {1, 2}, range(3)),
    *(torch.zeros(3), torch.tensor(2.5), np.zeros(2), nn.Linear, nn.Linear(1, 1), int, {"a": 1}),
    *([[]], [None], [3], ["text"], (nn.Linear,), Flag.STOP_EPOCH, Phase.EPOCH_END, Transition(), [Transition()]),
]
"""Values of which each is wrong at most parameters; where one is right, nothing is asked of it."""


def ready() -> State:
    return start(Scripted(valid_loss=1.0), epochs=1)


def trained() -> Supervised:
    model = nn.Linear(1, 1)
    batches = [(torch.zeros(2, 1), torch.zeros(2, 1))]
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), batches)


def make_state(seed: int) -> State:
    return ready()


ENTRIES: Mapping[tuple[str, str], tuple[Callable[[Any], object], str]] = {
    ("run", "state"): (run, "state"),
    ("run", "callbacks"): (lambda value: run(ready(), value), "callback"),
    ("run", "log"): (lambda value: run(ready(), log=value), "log"),
    ("run", "sinks"): (lambda value: run(ready(), sinks=value), "sink"),
    ("iterate", "state"): (lambda value: [*iterate(value)], "state"),
    ("iterate", "at"): (lambda value: [*iterate(ready(), at=value)], "phase"),
    ("start", "workload"): (lambda value: start(value, epochs=1), "workload"),
    ("start", "epochs"): (lambda value: start(Scripted(), epochs=value), "epochs"),
    ("start", "max_steps"): (lambda value: start(Scripted(), max_steps=value), "max_steps"),
    ("start", "seed"): (lambda value: start(Scripted(), epochs=1, seed=value), "seed"),
    ("start", "seconds"): (lambda value: start(Scripted(), epochs=1, seconds=value), "seconds"),
    ("evaluate", "workload"): (evaluate, "workload"),
    ("evaluate", "data"): (lambda value: evaluate(trained(), [] if value is None else value), "batch"),
    ("evaluate", "prefix"): (lambda value: evaluate(Scripted(valid_loss=1.0), prefix=value), "prefix"),
    ("extend", "state"): (lambda value: extend(value, epochs=1), "state"),
    ("find_lr", "state"): (find_lr, "state"),
    ("find_lr", "low"): (lambda value: find_lr(ready(), low=value), "low"),
    ("find_lr", "high"): (lambda value: find_lr(ready(), high=value), "high"),
    ("find_lr", "steps"): (lambda value: find_lr(ready(), steps=value), "steps"),
    ("ablate", "callbacks"): (lambda value: ablate(make_state, value, progress=False), "callback"),
    ("ablate", "seeds"): (lambda value: ablate(make_state, [early_stopping()], seeds=value, progress=False), "seeds"),
    ("ablate", "mode"): (lambda value: ablate(make_state, [early_stopping()], mode=value, progress=False), "mode"),
}


def settings_of_the_library() -> dict[tuple[str, str], tuple[Callable[[Any], object], str]]:
    """Each setting of each callback, beside the other settings of an example."""
    found: dict[tuple[str, str], tuple[Callable[[Any], object], str]] = {}
    for name, makers in EXAMPLES.items():
        params = makers[0]().params
        for each in inspect.signature(getattr(callbacks, name)).parameters.values():
            if each.kind is not each.VAR_KEYWORD:
                found[name, each.name] = (functools.partial(made_with, name, params, each.name), each.name)
    return found


def made_with(name: str, params: Mapping[str, Any], setting: str, value: Any) -> object:
    """The callback with this value of one setting."""
    make: Any = getattr(callbacks, name)
    spread = [each.name for each in inspect.signature(make).parameters.values() if each.kind is each.VAR_POSITIONAL]
    given = {**params, setting: (value,) if setting in spread else value}
    several = [part for each in spread for part in given.pop(each)]
    return make(*several, **given)


PLACES = {**ENTRIES, **settings_of_the_library()}


def ends_in_a_sentence(place: tuple[str, str], value: Any) -> None:
    """The law: what is not taken is refused by an error of ours, which says what it is about."""
    call, named = PLACES[place]
    here = pathlib.Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            call(value)
        except Exception as error:
            ours = isinstance(error, (TypeError, ValueError)) and named in str(error)
            if not ours:
                raise AssertionError(f"{place} with {value!r} is a {type(error).__name__}: {error}") from error
        finally:
            os.chdir(here)


@pytest.mark.parametrize("place", sorted(PLACES), ids=".".join)
def test_any_wrong_value_ends_in_a_sentence(place: tuple[str, str]) -> None:
    """A TypeError or ValueError whose text names the parameter; nothing raw of Python, NumPy or torch.

    Each value is tried at each place: what is drawn would find a new callback's fault in one run of many.
    """
    for value in WRONG:
        ends_in_a_sentence(place, value)


# ------------------------------------------------------------------------------- planted bugs


def unchecked_numbers(patch: pytest.MonkeyPatch) -> None:
    """A number is compared with, and what cannot be compared raises Python's or torch's own."""

    def compare(name: str, value: Any, fits: Callable[[Any], bool], wanted: str) -> None:
        if not fits(value):
            raise ValueError(f"{name}={value!r}: {wanted}")

    patch.setattr(checks, "check_number", compare)


def states_are_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("fsm_train.core.workload.check_state", lambda state, call: None)


def sentences_without_a_name(patch: pytest.MonkeyPatch) -> None:
    def nameless(name: str, value: Any, least: int = 0) -> None:
        if not checks.is_whole(value, least):
            raise ValueError(f"{value!r} is no whole number")

    patch.setattr("fsm_train.callbacks.stopping.check_count", nameless)


@pytest.mark.parametrize(
    ("bug", "place", "value"),
    [
        (unchecked_numbers, ("grad_noise", "std"), torch.zeros(3)),
        (unchecked_numbers, ("grad_noise", "std"), "text"),
        (states_are_trusted, ("run", "state"), "text"),
        (sentences_without_a_name, ("early_stopping", "patience"), -1),
    ],
)
def test_a_raw_or_nameless_error_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], place: tuple[str, str], value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law has teeth, and holds without the bug."""
    ends_in_a_sentence(place, value)
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        ends_in_a_sentence(place, value)


def test_the_law_is_tried_on_each_callback_and_entry_point() -> None:
    """A new callback of the library is among them."""
    assert {name for name, _ in PLACES} >= {"run", "start", "find_lr", *callbacks.__all__}
