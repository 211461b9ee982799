"""`examples/diffusion.py` beside the algorithms 1 and 2 of Ho et al., "Denoising Diffusion Probabilistic Models"."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Supervised, evaluate, weights
from fsm_train.callbacks import ema
from tests.averages_by_hand import By
from tests.examples.scripts import example
from tests.killed import killed_and_resumed
from tests.models import same_weights

KEPT = (150, 1000, 2000)


@attrs.frozen
class Kept:
    """The model and the average of its weights after some step, and what the average draws."""

    model: nn.Module
    average: nn.Module
    drawn: torch.Tensor


def fresh(script: Any) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(164, 384), nn.SiLU(), nn.Linear(384, 384), nn.SiLU(), nn.Linear(384, 64))
    loader = DataLoader(script.IMAGES[:1500], batch_size=100, shuffle=True)
    return model, torch.optim.Adam(model.parameters(), lr=2e-3), loader


def loss_of(model: nn.Module, script: Any, images: torch.Tensor) -> torch.Tensor:
    time = torch.randint(100, (len(images),))
    noise = torch.randn_like(images)
    left = script.SIGNAL[time].unsqueeze(1)
    noisy = left.sqrt() * images + (1 - left).sqrt() * noise
    return nn.functional.mse_loss(model(torch.cat([noisy, nn.functional.one_hot(time, 100)], dim=1)), noise)


@torch.no_grad()
def sampled(model: nn.Module, script: Any) -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(9, 64)
    for t in range(99, -1, -1):
        time = nn.functional.one_hot(torch.full((9,), t), 100)
        mean = x - script.BETAS[t] / (1 - script.SIGNAL[t]).sqrt() * model(torch.cat([x, time], dim=1))
        z = torch.randn(9, 64)
        x = mean / (1 - script.BETAS[t]).sqrt() + script.BETAS[t].sqrt() * (z if t else 0 * z)
    return x


def by_hand(script: Any) -> dict[int, Kept]:
    model, optimizer, loader = fresh(script)
    averaged = By(decay=0.999, start=100, warmup=True).averaged(model)
    kept: dict[int, Kept] = {}
    step = 0
    torch.manual_seed(0)
    while True:
        for images in loader:
            loss_of(model, script, images).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            averaged.after(step, model)
            if step in KEPT:
                generator = torch.get_rng_state()
                average = copy.deepcopy(averaged.torchs.module)
                kept[step] = Kept(copy.deepcopy(model), average, sampled(average, script))
                torch.set_rng_state(generator)
            if step == KEPT[-1]:
                return kept


def test_diffusion_is_the_plain_loop(tmp_path: Path) -> None:
    """Weights, their average, what it draws, and losses with the same noise; also over a kill amid the average."""
    script = example("diffusion.py")

    def workload() -> Supervised:
        settings = {"split": lambda images: (images, None), "forward": script.denoise}
        model, optimizer, loader = fresh(script)
        return Supervised(model, optimizer, lambda output, _: nn.functional.mse_loss(*output), loader, **settings)

    kept = by_hand(script)
    callbacks = [ema(0.999, start=100, warmup=True, validate=False), script.draws]
    _, resumed = killed_and_resumed(workload, tmp_path, 128, callbacks, epochs=10)

    assert same_weights(script.model, kept[2000].model)
    assert same_weights(resumed.model, kept[150].model)
    assert [torch.equal(drawn, kept[step].drawn) for drawn, step in zip(script.drawn, KEPT[1:], strict=True)] == [
        True
    ] * 2
    for work, step in ((script.work, 2000), (resumed, 150)):
        with weights(work, "ema"):
            assert same_weights(work.model, kept[step].average)
    losses = {}
    for name, model in (("own", kept[2000].model), ("ema", kept[2000].average)):
        torch.manual_seed(0)
        losses[f"valid_{name}_loss"] = loss_of(model, script, script.IMAGES[1500:]).item()
    assert evaluate(script.work) == losses
    assert losses["valid_ema_loss"] < losses["valid_own_loss"] < 0.2
