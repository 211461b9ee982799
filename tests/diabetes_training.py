"""A training of a small model on the diabetes data, for tests of callbacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import nn

from fsm_train import Callback, Phase, State, Supervised, on, run, start
from tests.models import diabetes

Batch = tuple[torch.Tensor, torch.Tensor]


@functools.cache
def _patients() -> tuple[torch.Tensor, ...]:
    return diabetes().tensors


def batches(*sizes: int, skip: int = 0) -> list[Batch]:
    """The first patients after `skip` of them, in batches of these sizes."""
    inputs, target = (tensor[skip : skip + sum(sizes)] for tensor in _patients())
    return list(zip(inputs.split(sizes), target.split(sizes), strict=True))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(10, 1)


def net() -> nn.Sequential:
    """Two layers, with the statistics of batch norm between them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def plain(model: nn.Module) -> torch.optim.Optimizer:
    """Gradient descent with rate 1: a step subtracts the gradient."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


@attrs.frozen
class Trained:
    """A finished training: its workload and its last state."""

    work: Supervised
    final: State

    @property
    def model(self) -> nn.Module:
        return self.work.model

    @property
    def weights(self) -> torch.Tensor:
        return weights_of(self.work.model)


def weights_of(model: nn.Module) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def workload(
    data: Iterable[Any] | None = None,
    *,
    model: nn.Module | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    loss_fn: Any = None,
    **settings: Any,
) -> Supervised:
    model = linear() if model is None else model
    return Supervised(model, optimizer(model), loss_fn or nn.MSELoss(), data or batches(8, 8, 8, 6), **settings)


def trained(
    callbacks: Iterable[Callback[Any]],
    data: Iterable[Any] | None = None,
    *,
    epochs: int | None = 1,
    max_steps: int | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Trained:
    work = workload(data, **settings)
    return Trained(work, run(start(work, epochs=epochs, max_steps=max_steps, seed=seed), callbacks))


def looking(phase: Phase, look: Callable[[State], object], **settings: Any) -> tuple[Callback[Any], list[Any]]:
    """A callback that appends `look(state)` to a list at this phase, and that list."""
    seen: list[Any] = []

    @on(phase, name=f"look at {phase.value}", **settings)
    def looker(state: State) -> None:
        seen.append(look(state))

    return looker, seen
