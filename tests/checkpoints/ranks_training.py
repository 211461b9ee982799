"""A small training on several ranks with all that is awkward to resume."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fsm_train import Supervised
from fsm_train import callbacks as c
from fsm_train.core.callback import Callback
from fsm_train.data import reproducible
from tests.models import diabetes

EPOCHS, BATCH = 2, 8


class Augmented(Dataset[Any]):
    """Each second patient, say; random numbers of two kinds are added when one is read."""

    def __init__(self, rank: int, ranks: int, length: int) -> None:
        inputs, target = diabetes().tensors
        self.inputs, self.target = inputs[rank:length:ranks], target[rank:length:ranks]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index] + 0.1 * random.random() + 0.1 * torch.rand(10), self.target[index]


class Counts:
    """A loss with a state of its own on each rank: what it counted changes the loss."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.requires_grad:
            self.total += output.detach().mean().item()
        return nn.functional.mse_loss(output, target) * (1 + 1e-3 * self.total)

    def state_dict(self) -> dict[str, float]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.total = state["total"]


class Queue(nn.Module):
    """Remembers the means of its last inputs in a buffer that is in no state_dict, and scales by them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen = torch.cat([self.seen[1:], x.detach().abs().mean().view(1)])
        return x / (1 + self.seen.mean())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """With a momentum."""
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


@attrs.frozen
class RankSpec:
    """Which training, on which rank; what `comparison` takes.

    Attributes:
        rank, ranks: the number of this one, and how many there are.
        length: how many patients there are; the last batches of the ranks count differently where it is no multiple.
        accumulates: batches of a window, whose gradients the ranks reduce by hand; 1 for none.
        parallel: for `Supervised`.
        epochs: number of epochs.
        workers: processes of the training loader.
        optimizer: makes it of the model.
    """

    rank: int
    ranks: int = 2
    length: int = 61
    accumulates: int = 3
    parallel: Any = "ddp"
    epochs: int = EPOCHS
    workers: int = 0
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd

    def make(self) -> tuple[Supervised, list[Callback[Any]]]:
        """A new workload and new callbacks, as a script makes them each time that it starts."""
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), Queue(), nn.Dropout(0.3), nn.Linear(8, 1))
        data = Augmented(self.rank, self.ranks, self.length)
        train: Any = DataLoader(data, BATCH, shuffle=True, num_workers=self.workers)
        train = reproducible(train) if self.workers else train
        valid = DataLoader(Augmented(self.rank, self.ranks, 20), 5, shuffle=True)
        loss = Counts()
        work = Supervised(
            *(model, self.optimizer, loss, train, valid),
            metrics={"error": lambda output, target: (output - target).abs().mean()},
            extra={"loss": loss},
            parallel=self.parallel,
        )
        windows = [c.accumulate(self.accumulates)] if self.accumulates > 1 else []
        return work, [
            *windows,
            *(c.ema(0.8), c.clip_grad_norm(1.0), c.restore_best(), c.early_stopping("train_error", patience=9)),
            c.validate_every(steps=1),
        ]
