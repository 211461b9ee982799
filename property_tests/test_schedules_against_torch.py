"""Schedules against the schedulers of torch, run on a real optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from fsm_train import schedules

LR = 0.3

Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
Pair = tuple[schedules.Schedule, Make, int]
"""Our schedule, how to make the scheduler of torch, and the number of steps to compare."""

shares = st.floats(0, 1)
parts = st.floats(0.001, 1)


def rates_of_torch(make: Make, steps: int) -> list[float]:
    """The rates that an optimizer uses, step by step, under a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates_of(schedule: schedules.Schedule, steps: int) -> list[float]:
    return [LR * schedule(progress) for progress in range(steps)]


@st.composite
def of_constant(draw: st.DrawFn) -> Pair:
    factor, length = draw(parts), draw(st.integers(1, 20))  # with 0 the scheduler of torch divides by zero
    ours = schedules.constant(factor, length=length).then(schedules.constant())
    return ours, lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor, length), 40


@st.composite
def of_warmup(draw: st.DrawFn) -> Pair:
    start, length = draw(parts), draw(st.integers(1, 30))
    ours = schedules.warmup(length, start=start)
    return ours, lambda optimizer: lr_scheduler.LinearLR(optimizer, start, 1.0, length), 40


@st.composite
def of_linear(draw: st.DrawFn) -> Pair:
    start, end, length = draw(parts), draw(shares), draw(st.integers(1, 30))
    return (
        schedules.linear(start, end, length),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, start, end, length),
        40,
    )


@st.composite
def of_exponential(draw: st.DrawFn) -> Pair:
    gamma = draw(st.floats(0.5, 1.1))
    return schedules.exponential(gamma), lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma), 60


@st.composite
def of_step(draw: st.DrawFn) -> Pair:
    every, drop = draw(st.integers(1, 15)), draw(st.floats(0.1, 1))
    return schedules.step(every, drop=drop), lambda optimizer: lr_scheduler.StepLR(optimizer, every, drop), 60


@st.composite
def of_multistep(draw: st.DrawFn) -> Pair:
    milestones, drop = sorted(draw(st.sets(st.integers(1, 59), min_size=1, max_size=5))), draw(st.floats(0.1, 1))
    ours = schedules.multistep(milestones, drop=drop)
    return ours, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones, drop), 70


@st.composite
def of_polynomial(draw: st.DrawFn) -> Pair:
    length, power = draw(st.integers(1, 40)), draw(st.floats(0.3, 3))
    return (
        schedules.polynomial(length, power=power),
        lambda optimizer: lr_scheduler.PolynomialLR(optimizer, length, power),
        60,
    )


@st.composite
def of_cosine(draw: st.DrawFn) -> Pair:
    length, floor = draw(st.integers(1, 60)), draw(shares)
    ours = schedules.cosine(length, floor=floor)
    return ours, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, length, floor * LR), length + 1


@st.composite
def of_cosine_restarts(draw: st.DrawFn) -> Pair:
    period, factor, floor = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(shares)
    ours = schedules.cosine_restarts(period, factor=factor, floor=floor)
    return (
        ours,
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, factor, floor * LR),
        100,
    )


@st.composite
def of_one_cycle(draw: st.DrawFn) -> Pair:
    shape, three_phase = draw(st.sampled_from(["cosine", "linear"])), draw(st.booleans())
    rise = draw(st.floats(0.1, 0.5 if three_phase else 0.95))
    length = draw(st.integers(math.ceil(1 / rise) + 1, 80))
    start, final = draw(parts), draw(st.floats(1e-6, 0.01))
    ours = schedules.one_cycle(length, warmup=rise, start=start, final=final, shape=shape, three_phase=three_phase)  # type: ignore[arg-type]
    return (
        ours,
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            LR,
            length,
            pct_start=rise,
            anneal_strategy="cos" if shape == "cosine" else "linear",
            cycle_momentum=False,
            div_factor=1 / start,
            final_div_factor=start / final,
            three_phase=three_phase,
        ),
        length,
    )


@st.composite
def of_cyclic(draw: st.DrawFn) -> Pair:
    mode: Any = draw(st.sampled_from(["triangular", "triangular2", "exp_range"]))
    up, down, low = draw(st.integers(1, 12)), draw(st.none() | st.integers(1, 12)), draw(shares)
    gamma = draw(st.floats(0.9, 1)) if mode == "exp_range" else 1.0
    ours = schedules.cyclic(up, down=down, low=low, mode=mode, gamma=gamma)
    return (
        ours,
        lambda optimizer: lr_scheduler.CyclicLR(
            optimizer, low * LR, LR, up, down, mode=mode, gamma=gamma, cycle_momentum=False
        ),
        80,
    )


@st.composite
def of_chain(draw: st.DrawFn) -> Pair:
    start, first, gamma, second = draw(parts), draw(st.integers(1, 8)), draw(st.floats(0.5, 1)), draw(st.integers(1, 8))
    ours = (
        schedules.warmup(first, start=start)
        .then(schedules.exponential(gamma), after=first)
        .then(schedules.cosine(30), after=first + second)
    )
    return (
        ours,
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [
                lr_scheduler.LinearLR(optimizer, start, 1.0, first),
                lr_scheduler.ExponentialLR(optimizer, gamma),
                lr_scheduler.CosineAnnealingLR(optimizer, 30),
            ],
            [first, first + second],
        ),
        first + second + 30,
    )


@st.composite
def of_product(draw: st.DrawFn) -> Pair:
    start, length, gamma = draw(parts), draw(st.integers(1, 20)), draw(st.floats(0.5, 1))
    ours = schedules.warmup(length, start=start) * schedules.exponential(gamma)
    return (
        ours,
        lambda optimizer: lr_scheduler.ChainedScheduler(
            [lr_scheduler.LinearLR(optimizer, start, 1.0, length), lr_scheduler.ExponentialLR(optimizer, gamma)]
        ),
        40,
    )


KINDS = [
    *(of_constant, of_warmup, of_linear, of_exponential, of_step, of_multistep, of_polynomial),
    *(of_cosine, of_cosine_restarts, of_one_cycle, of_cyclic, of_chain, of_product),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_the_scheduler_of_torch_gives_the_same_rates(
    kind: Callable[[], st.SearchStrategy[Pair]], data: st.DataObject
) -> None:
    """Each schedule gives the rates that torch's own scheduler sets, for all settings."""
    ours, scheduler, steps = data.draw(kind())

    assert rates_of(ours, steps) == pytest.approx(rates_of_torch(scheduler, steps), rel=1e-9, abs=1e-12)
