"""`examples/nanogpt.py` beside the loop of nanoGPT's train.py."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Supervised
from fsm_train.callbacks import limit
from tests.examples.scripts import example
from tests.killed import killed_and_resumed
from tests.models import same_weights

Losses = dict[str, float]


def fresh(script: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = script.GPT()
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95))


def by_hand(script: Any) -> tuple[list[nn.Module], list[Losses]]:
    """The model before the first step and after each 60th, and the losses of both parts of the text."""

    def loss_of(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(inputs).transpose(1, 2), target)

    @torch.no_grad()
    def estimate_loss() -> Losses:
        model.eval()
        generator, losses = torch.get_rng_state(), {}
        for split, text in (("train", script.TRAIN), ("val", script.VAL)):
            torch.manual_seed(1)
            losses[split] = sum(loss_of(*batch).item() for batch in script.Windows(text, 8)) / 8
        torch.set_rng_state(generator)
        model.train()
        return losses

    model, optimizer = fresh(script)
    torch.manual_seed(0)
    batches = iter(script.Windows(script.TRAIN))
    models, measured = [], []
    for step in range(script.STEPS + 1):
        if step % 60 == 0:
            measured.append(estimate_loss())
            models.append(copy.deepcopy(model))
        if step == script.STEPS:
            return models, measured
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * script.RATE(step)
        for _ in range(2):
            (loss_of(*next(batches)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError("it ends after the last step")


# A stream that draws is read from its beginning again, with other draws: none of its batches depends on those before.
@pytest.mark.filterwarnings("ignore:to continue in the middle of an epoch:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:the Windows draws random numbers while it is read:RuntimeWarning")
def test_nanogpt_is_the_plain_loop(tmp_path: Path) -> None:
    """Weights and losses to the last bit, of the best checkpoint too, and over a kill amid micro-steps; it learns."""
    script = example("nanogpt.py")

    def workload() -> Supervised:
        loss_fn = lambda logits, target: nn.functional.cross_entropy(logits.mT, target)
        return Supervised(*fresh(script), loss_fn, script.Windows(script.TRAIN), script.splits)

    models, measured = by_hand(script)
    callbacks = [*script.callbacks, limit(batches=120)]
    _, resumed = killed_and_resumed(workload, tmp_path, 71, callbacks, epochs=1)

    best, lowest = min(enumerate(measured), key=lambda numbered: numbered[1]["val"])
    assert same_weights(script.model, models[-1])
    assert same_weights(script.best, models[best])
    assert same_weights(resumed.model, models[1])
    assert script.loaded["metrics"] == {f"valid_{split}_loss": loss for split, loss in lowest.items()}
    assert lowest["val"] < 2.1 < 4 < measured[0]["val"]
