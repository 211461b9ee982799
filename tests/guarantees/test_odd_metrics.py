"""What is measured is a real number with a name that is text: anything else is refused, or read again from the log."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fsm_train import Callback, Phase, Scripted, State, Supervised, WorkloadError, on, read_log, replay, run, start
from fsm_train.callbacks import record
from fsm_train.eventlog import Line


class Computed:
    """A metric that computes the same each time."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def update(self, output: Any, target: Any) -> None:
        """Nothing."""

    def reset(self) -> None:
        """Nothing."""

    def compute(self) -> Any:
        return self.value


def _work(**settings: Any) -> Supervised:
    model = nn.Linear(4, 2)
    batches = [(torch.ones(2, 4), torch.zeros(2, 2))]
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), batches, batches, **settings)


def _measuring(how: str, name: str, value: Any) -> Supervised:
    """A training of which this value is a metric or a fact."""
    if how == "sensor":
        return _work(sensors={name: lambda work: value})
    return _work(metrics={name: Computed(value) if how == "object" else lambda output, target: value})


def _measured(how: str, value: Any, log: Path) -> float:
    """What a log has of it; the log has to be whole, and its replay to agree."""
    callbacks: list[Callback[Any]] = [record("odd")] if how == "sensor" else []
    final = run(start(_measuring(how, "odd", value), epochs=1), callbacks, log=log)
    assert final.notes == ()
    assert replay(log).ok
    found = [
        line.facts["odd"] if how == "sensor" else line.metrics["valid_odd"]
        for line in read_log(log)
        if isinstance(line, Line) and ("odd" in line.facts if how == "sensor" else line.phase is Phase.EPOCH_END)
    ]
    return found[0]


HOW = ("function", "object", "sensor")
REAL: list[Any] = [
    *(1, 0.5, True, math.nan, -math.inf, 2**70, Fraction(1, 2), Decimal("0.5")),
    *(np.float32(0.5), np.float16(0.5), np.int8(3), np.bool_(True), np.array(0.5)),
    *(torch.tensor(0.5, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.float64)),
    *(
        torch.tensor(True),
        torch.tensor(7, dtype=torch.uint8),
        torch.tensor(-(2**40)),
        torch.tensor(0.5, requires_grad=True),
    ),
]
UNREAL: list[Any] = [
    *(None, "0.5", b"1", 1j, 10**400, [0.5], {}, ..., complex(1, 0)),
    *(
        np.complex64(1),
        np.complex128(1 + 2j),
        np.array(1j),
        np.array("0.5"),
        np.ones(2),
        np.array([]),
        np.datetime64(1, "s"),
    ),
    *(torch.tensor(1j), torch.tensor(1 + 0j), torch.ones(2), torch.ones(0), Fraction(10**400, 3)),
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("value", REAL, ids=repr)
def test_a_real_number_is_measured_and_read_again(how: str, value: Any, tmp_path: Path) -> None:
    """Of Python, NumPy and torch, and of any type: what a log has is what was measured, as a plain number."""
    found = _measured(how, value, tmp_path / "run.jsonl")

    assert type(found) in (int, float)
    assert found == pytest.approx(float(getattr(value, "item", lambda: value)()), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("value", UNREAL, ids=repr)
def test_what_is_no_real_number_is_refused_by_name(how: str, value: Any) -> None:
    """At its first batch; nothing takes a part of it in silence."""
    callbacks: list[Callback[Any]] = [record("odd")] if how == "sensor" else []
    if how == "object" and isinstance(value, dict):
        return  # the names and numbers of several metrics, of which there are none

    with pytest.raises(WorkloadError) as caught:
        run(start(_measuring(how, "odd", value), epochs=1), callbacks)
    assert "'odd'" in str(caught.value)


@pytest.mark.parametrize("how", HOW)
def test_a_name_that_is_no_text_is_refused_where_it_is_given(how: str) -> None:
    """Before the first batch: neither a log nor a checkpoint could hold it."""
    with pytest.raises(ValueError, match="has the name 'a.udcff': it has half of a pair of UTF-16"):
        _measuring(how, "a\udcff", 1.0)


def test_a_computed_name_that_is_no_text_is_refused_at_the_first_batch() -> None:
    """A metric may compute several, with names of their own."""
    work = _work(metrics={"scores": Computed({"good": 1.0, "b\udcff": 1.0})})

    with pytest.raises(WorkloadError, match=r"the metric 'scores' returned the name 'valid_scores_b.udcff'"):
        run(start(work, epochs=1))


SCRIPTS: list[Any] = [True, np.float32(0.5), np.int64(3), np.float64(math.nan), Fraction(1, 4), 2**70]


@pytest.mark.parametrize("value", SCRIPTS, ids=repr)
@pytest.mark.parametrize("script", [lambda value: [value], lambda value: lambda state: value], ids=["list", "function"])
def test_what_a_script_gives_can_be_read_again(script: Any, value: Any, tmp_path: Path) -> None:
    """As what a model measures."""
    log = tmp_path / "run.jsonl"
    final = run(start(Scripted(loss=1.0, valid_loss=script(value)), epochs=1), log=log)

    assert final.notes == ()
    assert final.metrics["valid_loss"] == pytest.approx(float(value), nan_ok=True)
    assert replay(log).ok


@pytest.mark.parametrize("value", [None, "0.5", 1j, [0.5], 10**400, Fraction(10**400, 3), np.complex64(1)], ids=repr)
def test_a_script_gives_real_numbers(value: Any) -> None:
    """And says which one does not."""
    work = Scripted(loss=1.0, valid_loss=lambda state: value)

    with pytest.raises(WorkloadError, match="the script of valid_loss gives .*: give real numbers that fit a float"):
        run(start(work, epochs=1))


def test_a_script_has_a_name_that_is_text() -> None:
    """As all names that come into a log."""
    with pytest.raises(ValueError, match="the name 'valid_.udcff': it has half of a pair"):
        Scripted(**{"valid_\udcff": 1.0})


def test_a_callback_has_a_name_that_is_text() -> None:
    """It is the key of its answers and of its memory."""
    with pytest.raises(ValueError, match="a callback has the name 'a.udcff': it has half of a pair"):

        @on(Phase.EPOCH_END, name="a\udcff")
        def odd(state: State) -> None:
            """Nothing."""


class OfOnesOwn(Scripted):
    """A workload of somebody's own, which measures what it likes."""

    def __init__(self, value: Any) -> None:
        super().__init__(loss=1.0, valid_loss=1.0)
        self.value = value

    def measure_valid(self, state: State) -> Any:
        return {**super().measure_valid(state), "valid_odd": self.value}


@pytest.mark.parametrize("value", [True, np.float32(0.5), Fraction(1, 2)], ids=repr)
def test_what_another_workload_measures_can_be_read_again(value: Any, tmp_path: Path) -> None:
    """A log has numbers of any kind as plain ones."""
    log = tmp_path / "run.jsonl"

    assert run(start(OfOnesOwn(value), epochs=1), log=log).notes == ()
    assert replay(log).ok


def test_what_another_workload_measures_and_is_no_number_is_not_logged(tmp_path: Path) -> None:
    """The log ends before it and can be read; the training goes on, and its last state names it."""
    log = tmp_path / "run.jsonl"

    with pytest.warns(RuntimeWarning, match="valid_odd is 1j, which is no real number"):
        final = run(start(OfOnesOwn(1j), epochs=1), log=log)

    assert (final.phase, len(final.notes)) == (Phase.DONE, 1)
    assert [line.phase.value for line in read_log(log) if isinstance(line, Line)] == ["setup", "epoch_begin"]
