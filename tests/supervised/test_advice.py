"""What is said of a training before it begins, and what is left unsaid."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import extend, run, start
from fsm_train.supervised.advice import PerformanceSettings, advice, inspect_settings
from tests.diabetes_training import batches, linear, trained, weights_of, workload
from tests.models import Noisy, digits

FUSE = "Adam(…, fused=True) takes a step in one kernel instead of many"
FOREACH = "RMSprop without foreach=False takes a step for all parameters at once"
PIN = "DataLoader(…, pin_memory=True) lets a batch be copied while another one is trained"
WORKERS = "DataLoader(…, num_workers=4), say, lets samples be read while others are trained"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (PerformanceSettings(), ()),
        (PerformanceSettings(optimizer="Adam", can_fuse=True), (FUSE,)),
        (PerformanceSettings("cuda", "Adam", can_fuse=True, one_by_one=True), (FUSE,)),
        (PerformanceSettings("cuda", "RMSprop", one_by_one=True), (FOREACH,)),
        (PerformanceSettings("cpu", "RMSprop", one_by_one=True), ()),
        (PerformanceSettings("cuda", workers=0), (PIN, WORKERS)),
        (PerformanceSettings("cuda", workers=0, pinned=True), (WORKERS,)),
        (PerformanceSettings("cuda", workers=2), (PIN,)),
        (PerformanceSettings("cuda", workers=0, in_memory=True), (PIN,)),
        (PerformanceSettings("cuda", workers=2, pinned=True), ()),
        (PerformanceSettings("cuda", workers=None), ()),
        (PerformanceSettings("cpu", workers=0), ()),
        (PerformanceSettings("cuda", "Adam", can_fuse=True, workers=0), (FUSE, PIN, WORKERS)),
    ],
)
def test_advice_is_given_where_it_helps(found: PerformanceSettings, said: tuple[str, ...]) -> None:
    """Pinned memory and workers on CUDA alone; a fused step wherever there is one; else nothing."""
    assert advice(found) == said


PARAMETERS = list(linear().parameters())


@pytest.mark.parametrize(
    ("optimizer", "can_fuse"),
    [
        (torch.optim.Adam(PARAMETERS), True),
        (torch.optim.SGD(PARAMETERS, lr=0.1, momentum=0.9), True),
        (torch.optim.SGD(PARAMETERS, lr=0.1), False),
        (torch.optim.Adam(PARAMETERS, fused=True), False),
        (torch.optim.Adam(PARAMETERS, fused=False), False),
        (torch.optim.Adam(PARAMETERS, differentiable=True), False),
        (torch.optim.RMSprop(PARAMETERS), False),
        (torch.optim.Adam([torch.zeros(2, dtype=torch.complex64)]), False),
    ],
)
def test_what_can_be_fused_is_found(optimizer: torch.optim.Optimizer, can_fuse: bool) -> None:
    """Where torch has a fused form, it pays, and nobody has decided; what is advised is then taken by torch."""
    assert inspect_settings(optimizer, [], torch.device("cpu")).can_fuse is can_fuse
    if can_fuse:
        settings = {name: value for name, value in optimizer.defaults.items() if name in ("lr", "momentum")}
        type(optimizer)(linear().parameters(), **settings, fused=True)


@pytest.mark.parametrize(
    ("loader", "workers", "pinned", "in_memory"),
    [
        ([1], None, False, False),
        (DataLoader(Noisy(digits(8)), num_workers=2), 2, False, False),
        (DataLoader(digits(8), pin_memory=True), 0, True, True),
        (DataLoader(digits(8)), 0, False, True),
    ],
)
def test_what_a_loader_does_is_found(loader: Any, workers: int | None, pinned: bool, in_memory: bool) -> None:
    """Without iterating it, which would draw random numbers."""
    before = torch.get_rng_state()

    found = inspect_settings(torch.optim.RMSprop(PARAMETERS, foreach=False), loader, torch.device("cpu"))

    assert (found.workers, found.pinned, found.in_memory) == (workers, pinned, in_memory)
    assert (found.optimizer, found.one_by_one) == ("RMSprop", True)
    assert torch.equal(before, torch.get_rng_state())


def test_samples_that_are_on_the_device_need_not_be_pinned() -> None:
    """Torch refuses to."""

    class OnCuda(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    data = TensorDataset(torch.zeros(2, 1).as_subclass(OnCuda))

    assert inspect_settings(torch.optim.SGD(PARAMETERS), DataLoader(data), torch.device("cuda")).pinned


def test_summary_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """When the first run of a workload begins: what is trained, and the advice."""
    model = nn.Sequential(linear(), nn.Linear(1, 1).requires_grad_(False))
    work = workload(batches(8, 8), model=model, optimizer=lambda model: torch.optim.Adam(model.parameters()))
    with caplog.at_level(logging.INFO, "fsm_train"):
        final = run(start(work, epochs=1))
        run(extend(final, epochs=1))

    assert [record.message for record in caplog.records if record.name == "fsm_train"] == [
        f"Sequential of 13 parameters, 11 of them trained by Adam on cpu\nadvice: {FUSE}"
    ]


def test_advice_changes_nothing() -> None:
    """The optimizer is afterwards the one that it was."""
    ours = trained([], batches(8, 8), optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.1))

    assert ours.work.optimizer.param_groups[0]["fused"] is None
    theirs = linear()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.1)
    for inputs, target in batches(8, 8):
        nn.functional.mse_loss(theirs(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ours.weights.equal(weights_of(theirs))
