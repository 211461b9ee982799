"""A training that has something in most parts of a checkpoint, and all that a refused one must leave as it is."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import nn

from fsm_train import Supervised
from fsm_train.callbacks import accumulate, ema, restore_best, schedule
from fsm_train.core.callback import Callback
from fsm_train.schedules import cosine


class Counter:
    """Something beside the model that is saved with it. It has half loaded a state when it refuses it."""

    def __init__(self) -> None:
        self.counted = 1

    def state_dict(self) -> dict[str, Any]:
        return {"counted": self.counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counted = 0
        self.counted = int(state["counted"])


def rich(batches: int = 4, extra: tuple[str, ...] = (), *, frozen: bool = False) -> Supervised:
    """The workload.

    Args:
        batches: in an epoch.
        extra: names of counters that are saved too.
        frozen: whether the model has a tensor that does not change, and is written once.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    if frozen:
        model.register_parameter("fixed", nn.Parameter(torch.randn(40, 40), requires_grad=False))
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(batches)]
    optimizer = torch.optim.AdamW(model.parameters())
    return Supervised(
        model, optimizer, nn.MSELoss(), data, data[: batches // 2], extra={name: Counter() for name in extra}
    )


def library(steps: int) -> list[Callback[Any]]:
    """Callbacks that keep something, for a training of about so many steps."""
    return [ema(0.9), restore_best(), accumulate(3), schedule(lr=cosine(steps))]


def everything(work: Supervised, bare: nn.Module | None = None) -> list[Any]:
    """What a refusal leaves as it is: the workload, a bare model, and the generators of the process."""
    others = [] if bare is None else [*bare.parameters()]
    return [
        copy.deepcopy((work.model.state_dict(), work.model.training, work.optimizer.state_dict())),
        [None if p.grad is None else p.grad.clone() for p in work.parameters],
        [(p.requires_grad, p.dtype) for p in (*work.parameters, *others)],
        [p.detach().clone() for p in others],
        [sorted(group) for group in work.optimizer.param_groups],
        work.window.state(),
        copy.deepcopy(work.train_meters.state()),
        [id(part) for part in (work.carried_over, work.suspended_at, work.epoch_start)],
        [part.counted for part in work.extra.values()],
        random.getstate(),
        torch.get_rng_state(),
    ]


def same(one: Any, other: Any) -> bool:
    """Whether these nested values are equal, tensors in each bit and in their dtype."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
