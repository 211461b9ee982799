"""Models of complex numbers: what callbacks do with them is what a plain loop does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Supervised, restore, run, start
from fsm_train.callbacks import accumulate, checkpoint, clip_grad_norm, ema, micro_batches, weight_penalty

INPUTS = torch.randn(24, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
BATCHES = [(part, part.sum(dim=1, keepdim=True)) for part in INPUTS.split(8)]


def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).abs().square().mean()


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1, dtype=torch.complex64)


def workload() -> Supervised:
    model = layer()
    return Supervised(model, torch.optim.Adam(model.parameters(), lr=0.1), distance, BATCHES)


def by_hand(change: Callable[[nn.Linear, torch.Tensor], torch.Tensor], clip: float | None = None) -> nn.Linear:
    """Two epochs of the plain loop; `change` makes another loss."""
    model = layer()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for inputs, target in BATCHES * 2:
        change(model, distance(model(inputs), target)).backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return model


def penalized(model: nn.Linear, loss: torch.Tensor) -> torch.Tensor:
    squares = sum((p.abs().square().sum() for p in model.parameters()), torch.tensor(0.0))
    return loss + 0.1 * squares + 0.01 * sum((p.abs().sum() for p in model.parameters()), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("callback", "change", "clip"),
    [
        (weight_penalty(l1=0.01, l2=0.1), penalized, None),
        (clip_grad_norm(0.1), lambda _, loss: loss, 0.1),
        (micro_batches(3), lambda _, loss: loss, None),
    ],
    ids=["weight_penalty", "clip_grad_norm", "micro_batches"],
)
def test_complex_model_is_trained_as_by_hand(callback: Any, change: Any, clip: float | None) -> None:
    """To rounding: a penalty is of absolute values, and an output of complex numbers can be cut in pieces."""
    work = workload()
    run(start(work, epochs=2), [callback])

    assert torch.allclose(work.model.weight, by_hand(change, clip).weight, atol=1e-6)


def test_complex_model_is_resumed_to_the_last_bit(tmp_path: Path) -> None:
    """With its moments and its average."""
    callbacks = [accumulate(2), ema(0.5), checkpoint(tmp_path, last=4)]
    whole, resumed = workload(), workload()
    run(start(whole, epochs=4), callbacks)
    state = restore(tmp_path / "epoch-00002", resumed)
    before = resumed.model.weight.detach().clone()
    run(state, callbacks)

    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert not torch.equal(before, whole.model.weight)
