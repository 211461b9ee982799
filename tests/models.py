"""Small real data, small models, and the five-line loop that trainings are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fsm_train import Callback, Flag, Phase, State, Transition, on


def digits(samples: int = 320) -> TensorDataset:
    """Real handwritten digits, 8 x 8 pixels between 0 and 1."""
    images, targets = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images[:samples], dtype=torch.float32) / 16, torch.tensor(targets[:samples]))


def diabetes() -> TensorDataset:
    """Ten measurements of real patients, and the progress of their illness after a year."""
    inputs, targets = load_diabetes(return_X_y=True)
    return TensorDataset(
        torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32).unsqueeze(1) / 100
    )


class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Adds noise to each sample when it is read, as augmentation does."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, target = self.data[index]
        return image + 0.1 * torch.randn_like(image), target


def network() -> nn.Module:
    """A model with everything that is awkward to repeat: batch norm, dropout, and random initial weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))


def shuffled(data: Dataset[Any], batch_size: int = 32) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def five_lines(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Callable[..., torch.Tensor], train: Any, epochs: int
) -> None:
    """The loop that trainings are compared with."""
    for _ in range(epochs):
        model.train()
        for inputs, target in train:
            loss = loss_fn(model(inputs), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether all parameters and buffers are equal to the last bit."""
    return equal(a.state_dict().values(), b.state_dict().values())


def equal(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> bool:
    """Whether there are as many tensors, and each is equal to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def leave_after(iteration: int) -> Callback[None]:
    """A callback that suspends after so many batches."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == iteration else None

    return leave
