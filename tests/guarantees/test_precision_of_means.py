"""Means are as precise as what they are of: no loss and no metric is rounded to single precision."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, State, Supervised, Transition, on, restore, run, start
from fsm_train.callbacks import checkpoint, early_stopping
from fsm_train.supervised.means import Mean, weighted_mean


class Falling(nn.Module):
    """Its output is its one parameter, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.level.expand(len(x))


def falling(rate: float = 1e-9, sizes: tuple[int, ...] = (4,), **metrics: Any) -> Supervised:
    model = Falling()
    data = [(torch.zeros(size), torch.zeros(size)) for size in sizes]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Supervised(model, optimizer, lambda output, target: output.mean(), data, valid=data, metrics=metrics)


def test_a_loss_in_double_precision_that_falls_is_seen_to_fall() -> None:
    """By 1e-9 an epoch, which is less than single precision has."""
    final = run(start(falling(), epochs=6), [early_stopping("train_loss", patience=3)])

    assert final.epoch == 6
    assert final.metrics["train_loss"] == pytest.approx(1 - 5e-9, rel=1e-15)
    assert final.metrics["valid_loss"] == pytest.approx(1 - 6e-9, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "mean"),
    [
        (torch.tensor(16777217), 16777217.0),
        (16777217, 16777217.0),
        (2**53 - 1, 2.0**53 - 1),
        (torch.tensor(2**53 - 1), 2.0**53 - 1),
        (1 / 3, 1 / 3),
        (torch.tensor(1 / 3, dtype=torch.float64), 1 / 3),
        (torch.tensor(0.1, dtype=torch.bfloat16), 0.10009765625),
        (torch.tensor(True), 1.0),
    ],
)
def test_a_metric_is_the_number_that_its_function_gives(value: Any, mean: float) -> None:
    """Whole numbers, Python's floats, and tensors of any type."""
    final = run(start(falling(sizes=(3, 5, 7), own=lambda output, target: value), epochs=1))

    assert final.metrics["train_own"] == final.metrics["valid_own"] == mean


def test_values_of_several_types_are_not_brought_to_a_common_one() -> None:
    """A large whole number beside one in half precision stays exact."""
    mean = Mean()
    for value in (
        torch.tensor(16777217),
        torch.tensor(0.5, dtype=torch.float16),
        torch.tensor(1 / 3, dtype=torch.float64),
    ):
        mean.add(value, 1)

    assert mean.result() == math.fsum([16777217, 0.5, 1 / 3]) / 3


def test_a_fact_is_not_rounded_beside_others() -> None:
    """Facts that are read together keep their precision: a loss in double, a whole number, a norm."""
    seen: dict[str, float] = {}

    @on(Phase.LOSS_END, needs={"loss", "count"})
    def look(state: State) -> None:
        seen.update(state.facts)

    work = falling()
    with torch.no_grad():
        work.model.level.fill_(1 / 3)  # type: ignore[operator]
    counting = Supervised(
        *(work.model, work.optimizer, work.loss_fn, work.train), sensors={"count": lambda work: torch.tensor(16777217)}
    )
    run(start(counting, epochs=1), [look])

    assert (seen["loss"], seen["count"]) == (1 / 3, 16777217)


def test_a_mean_under_way_is_saved_and_goes_on_exactly(tmp_path: Path) -> None:
    """In the middle of an epoch, with values of more than one type."""
    kinds = [torch.tensor(16777217), torch.tensor(1 / 3, dtype=torch.float64), torch.tensor(0.1)]

    def training() -> Supervised:
        taken = iter(kinds * 4)
        return falling(1e-3, (3, 5, 7), own=lambda output, target: next(taken))

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 2 else None

    whole = run(start(training(), epochs=1))
    run(start(training(), epochs=1), [checkpoint(tmp_path), leave])
    resumed = training()
    resumed.train_meters.metrics["own"].add(None, None, 1)  # the two values that the first process has used
    resumed.train_meters.metrics["own"].add(None, None, 1)
    final = run(restore(tmp_path, resumed), [checkpoint(tmp_path)])

    assert final.metrics == whole.metrics


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ([0.1, 0.7], [3, 1]),
        ([1 / 3, 1 / 7, 1e-9], [31, 7, 1]),
        ([1.0, 1e-16, -1.0], [3, 7, 3]),
        ([1e308, 1.5e308], [32, 16]),
        ([5e-324, 1.5e-323], [1, 2]),
        ([1 / 3], [0.1]),
        ([2.0, -1e300], [1, 0]),
    ],
)
def test_a_weighted_mean_is_that_of_one_pass_over_all(values: list[float], weights: list[float]) -> None:
    """The sum is that of exact products, rounded once."""
    exact = sum(Fraction(value) * Fraction(weight) for value, weight in zip(values, weights, strict=True))
    total = math.fsum(weights)

    assert weighted_mean(values, weights) == pytest.approx(float(exact / Fraction(total)), rel=3e-16, abs=0)


def test_a_mean_of_what_is_not_finite_is_not_finite() -> None:
    """An infinite value makes it infinite, and NaN makes it NaN."""
    assert weighted_mean([1.0, math.inf], [1, 2]) == math.inf
    assert math.isnan(weighted_mean([math.nan, 1.0], [1, 2]))
