"""`examples/nanogpt.py` beside the loop of nanoGPT's train.py."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tests.examples.scripts import example
from tests.models import same_weights

Losses = dict[str, float]


def by_hand(script: Any) -> tuple[nn.Module, nn.Module, list[Losses]]:
    """The model after the last step, the one with the lowest loss on the unseen part, and the losses of both parts."""

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

    torch.manual_seed(0)
    model = script.GPT()
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95))
    torch.manual_seed(0)
    batches = iter(script.Windows(script.TRAIN))
    best, measured = model, []
    for step in range(script.STEPS + 1):
        if step % 60 == 0:
            measured.append(estimate_loss())
            if measured[-1]["val"] == min(losses["val"] for losses in measured):
                best = copy.deepcopy(model)
        if step == script.STEPS:
            break
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * script.RATE(step)
        for _ in range(2):
            (loss_of(*next(batches)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, best, measured


def test_nanogpt_is_the_plain_loop() -> None:
    """The last weights, those of the best checkpoint and its losses are equal to the last bit; and it has learned."""
    script = example("nanogpt.py")

    model, best, measured = by_hand(script)

    lowest = min(measured, key=lambda losses: losses["val"])
    assert same_weights(script.model, model)
    assert same_weights(script.best, best)
    assert script.loaded["metrics"] == {f"valid_{split}_loss": loss for split, loss in lowest.items()}
    assert lowest["val"] < 2.1 < 4 < measured[0]["val"]
