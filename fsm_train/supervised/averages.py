"""Sets of weights beside the model's own: averages over the training, and copies to restore."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from .modules import load_module, state_of_module

StateDict = dict[str, Any]


class Average:
    """An average of the model's weights. While it is in use, the model has the average, and this has the model's own.

    Attributes:
        model: whose weights are averaged.
        averaged: torch's AveragedModel, with a copy of the model.
        in_use: whether the values are exchanged.
        own: the model's own weights, after `finish` gave it the average; otherwise None.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model = model
        self.blend = None if decay is None else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(model, multi_avg_fn=self.blend)
        self.in_use = False
        self.own: StateDict | None = None

    @property
    def started(self) -> bool:
        """False until the first update; restoring weights can make it False again."""
        return bool(self.averaged.n_averaged > 0)

    def update(self) -> None:
        """Take the model's present weights into the average."""
        if self.blend is None or not self.started:
            self.averaged.update_parameters(self.model)
            return
        # As AveragedModel does it, but without its copy of a counter to the device, which waits for the device.
        by_kind: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for theirs, ours in zip(self.averaged.module.parameters(), self.model.parameters(), strict=True):
            averages, weights = by_kind.setdefault((ours.device, ours.dtype), ([], []))
            averages.append(theirs.detach())
            weights.append(ours.detach())
        for averages, weights in by_kind.values():
            self.blend(averages, weights, None)
        for buffer, own in zip(self.averaged.module.buffers(), self.model.buffers(), strict=True):
            buffer.detach().copy_(own.detach())
        self.averaged.n_averaged += 1

    def use(self, on: bool) -> None:
        """Exchange the values in place: optimizer, wrappers and captured steps reference the tensors."""
        if on is self.in_use or not self.started:
            return
        with torch.no_grad():
            ours, theirs = _values(self.model), _values(self.averaged.module)
            copies = [value.clone() for value in ours]
            for mine, other, copy in zip(ours, theirs, copies, strict=True):
                mine.copy_(other)
                other.copy_(copy)
        self.in_use = on

    def finish(self) -> None:
        """Give the model the average. Its own weights are stored, for a training that is extended."""
        self.use(False)
        self.own = copy_of(self.model.state_dict())
        self.model.load_state_dict(self.averaged.module.state_dict())

    def state(self) -> StateDict:
        """What `load` restores. The tensors are the live ones."""
        return {"average": state_of_module(self.averaged), "own": self.own}

    def load(self, state: StateDict) -> None:
        load_module(self.averaged, state["average"])
        self.own = state["own"]

    def restore_own(self) -> None:
        """Give the model its own weights back, if it still has the average of `finish`."""
        own, self.own = self.own, None
        pairs = zip(self.model.parameters(), self.averaged.module.parameters(), strict=True)
        if own is not None and all(torch.equal(mine, average) for mine, average in pairs):
            self.model.load_state_dict(own)


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def refit_batch_norm(model: nn.Module, call: Any, inputs: Iterable[Any]) -> None:
    """Recompute the statistics of batch norm in one pass over the inputs. The modes of modules do not change."""
    modes = [(module, module.training) for module in model.modules()]
    update_bn(((each,) for each in inputs), _CalledBy(model, call))
    for module, mode in modes:
        module.training = mode


class _CalledBy(nn.Module):
    """The model as a module whose forward is `call`."""

    def __init__(self, model: nn.Module, call: Any) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, inputs: Any) -> Any:
        return self.call(inputs)


def copy_of(state: StateDict) -> StateDict:
    """A copy of a state_dict that shares no tensor with it."""
    return {name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
