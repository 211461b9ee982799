"""Promises that are easily made and hard to keep: torch's one_cycle, verdicts, decisions, sensors."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, State, Supervised, Transition, on, run, start
from fsm_train.ablation import Ablation, Variant
from fsm_train.callbacks import validate_every
from fsm_train.schedules import one_cycle

# ------------------------------------------------------------------------------------ one_cycle


def torchs(steps: int, **settings: Any) -> list[float]:
    """The rates of torch's OneCycleLR."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False, **settings
    )
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        if step + 1 < steps:
            optimizer.step()
            scheduler.step()
    return rates


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("steps", [2, 3, 4, 7, 19, 100])
def test_one_cycle_is_torchs_with_any_warm_up(steps: int, warmup: float, three_phase: bool) -> None:
    """Also with a warm-up of less than a step."""
    for shape, strategy in (("cosine", "cos"), ("linear", "linear")):
        ours = one_cycle(steps, warmup=warmup, three_phase=three_phase, shape=shape)  # type: ignore[arg-type]
        expected = torchs(steps, pct_start=warmup, three_phase=three_phase, anneal_strategy=strategy)
        assert [ours(step) for step in range(steps)] == pytest.approx(expected, abs=1e-12)


# ----------------------------------------------------------------------------------- ablation


def false_verdicts(seeds: int, rows: int, tables: int, chance: random.Random) -> float:
    """The share of tables with a verdict, of callbacks that have no effect."""
    wrong = 0
    for _ in range(tables):
        drawn = [tuple(chance.gauss(0, 1) for _ in range(seeds)) for _ in range(rows + 1)]
        variants = [Variant(f"without {i}", values, drawn[0], str(i)) for i, values in enumerate(drawn)]
        table = Ablation("valid_loss", "min", tuple(range(seeds)), tuple(variants))
        wrong += any(table.verdict(row) != "within the noise" for row in variants[1:])
    return wrong / tables


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("rows", [1, 5])
def test_verdicts_without_an_effect_are_as_rare_as_promised(seeds: int, rows: int) -> None:
    """At most one table in twenty; 0.065 is three standard errors above that, with a fixed seed."""
    assert false_verdicts(seeds, rows, 2_000, random.Random(seeds)) < 0.065


def test_large_effect_is_found() -> None:
    """The test is not only silent."""
    base = (0.5, 0.51, 0.49, 0.5)
    row = Variant("without a", (0.8, 0.82, 0.79, 0.81), base, "a")
    table = Ablation("valid_loss", "min", (0, 1, 2, 3), (Variant("all", base, base), row))

    assert table.verdict(row) == "worse without"


def test_equal_differences_of_a_rounded_metric_are_no_certainty() -> None:
    """Accuracies that differ by one sample for each of three seeds are within the noise; a fixed result is not."""
    base, worse = (0.8, 0.9, 0.85), (0.75, 0.85, 0.8)
    rounded = Variant("without a", tuple(round(value, 2) for value in worse), base, "a")
    fixed = Variant("without a", (0.8,) * 3, (0.9,) * 3, "a")

    assert rounded.chance > 0.05
    assert fixed.chance == 0.0


# ------------------------------------------------------------------------------------ sensors


def test_sensor_sees_the_batch_under_way_or_nothing() -> None:
    """After a validation, after the last batch and in a skipped batch no older tensor is there to be read."""
    seen: dict[tuple[str, int], tuple[float, float]] = {}
    model = nn.Linear(1, 1)
    train = [(torch.full((2, 1), float(i)), torch.zeros(2, 1)) for i in (1, 2, 3)]
    valid = [(torch.full((2, 1), 100.0), torch.zeros(2, 1))]

    def first_input(work: Supervised) -> float:
        return -1.0 if work.inputs is None else float(work.inputs[0])

    def has_output(work: Supervised) -> float:
        return float(work.output is not None)

    sensors = {"first_input": first_input, "has_output": has_output}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    work = Supervised(model, optimizer, nn.MSELoss(), train, valid, sensors=sensors)
    looks = (Phase.BATCH_END, Phase.VALID_BATCH_END, Phase.VALID_END, Phase.EPOCH_END)

    @on(Phase.BATCH_BEGIN, *looks, needs=sensors)
    def look(state: State) -> Transition | None:
        if state.phase is not Phase.BATCH_BEGIN:
            seen[state.phase.value, state.batch] = state.facts["first_input"], state.facts["has_output"]
        skip = state.phase is Phase.BATCH_BEGIN and state.batch == 1
        return Transition(flags=Flag.SKIP_BATCH) if skip else None

    run(start(work, epochs=1), [look, validate_every(steps=1)])

    assert seen["batch_end", 1] == (1.0, 1.0)
    assert seen["batch_end", 2] == (2.0, 0.0), "skipped: no output of the batch before"
    assert seen["valid_batch_end", 1] == (100.0, 1.0)
    assert seen["valid_end", 1] == (-1.0, 0.0)
    assert seen["epoch_end", 3] == (-1.0, 0.0)
