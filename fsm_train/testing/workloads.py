"""The workloads of the pytest fixtures `scripted` and `tiny_supervised`."""

from __future__ import annotations

import importlib
from typing import Any

from ..worlds.scripted import Scripted
from .iris import FLOWERS


def scripted() -> Scripted:
    """A workload without a model, with the batches, metrics and hyper-parameters of `tiny_supervised`."""
    return Scripted(
        batches=3,
        batch_size=50,
        loss=lambda state: 1.0 / (1 + state.iteration),
        valid_batches=1,
        valid_loss=lambda state: 1.0 / (1 + state.epoch),
        valid_accuracy=lambda state: 1.0 - 0.5 / (1 + state.epoch),
        hyper={"lr": 0.05, "momentum": 0.9},
    )


def tiny_supervised() -> Any:
    """Softmax regression of three kinds of iris; nothing of it is drawn, so each call gives equal weights and data."""
    # By name, since nothing in this half of the package may import torch.
    torch: Any = importlib.import_module("torch")
    supervised: Any = importlib.import_module("fsm_train.supervised.workload")

    flowers = torch.tensor(FLOWERS, dtype=torch.float32)
    inputs, species = (flowers[:, :4] - flowers[:, :4].mean(0)) / flowers[:, :4].std(0), flowers[:, 4].long()
    order = torch.randperm(len(flowers), generator=torch.Generator().manual_seed(0))
    batches = [(inputs[rows], species[rows]) for rows in order[:120].split(40)]
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    return supervised.Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        torch.nn.CrossEntropyLoss(),
        batches,
        [(inputs[order[120:]], species[order[120:]])],
        metrics={"accuracy": lambda output, target: (output.argmax(dim=1) == target).float().mean()},
    )
