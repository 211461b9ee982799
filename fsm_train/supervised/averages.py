"""Other sets of weights beside the model's: averages over the training, and copies to go back to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from .modules import load_module, state_of_module

StateDict = dict[str, Any]


class Average:
    """An average of the model's weights. While it is in use, the model has it, and it has the model's own."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model = model
        average = None if decay is None else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(model, multi_avg_fn=average)
        self.in_use = False
        self.own: StateDict | None = None  # the model's, once it has the average for good

    @property
    def begun(self) -> bool:
        """Whether there is an average yet; one may be brought back to before it began."""
        return bool(self.averaged.n_averaged > 0)

    def update(self) -> None:
        self.averaged.update_parameters(self.model)

    def use(self, on: bool) -> None:
        """Exchange the values, not the tensors, since optimizer, wrappers and captured steps hold on to those."""
        if on is self.in_use or not self.begun:
            return
        with torch.no_grad():
            ours, theirs = _values(self.model), _values(self.averaged.module)
            copies = [value.clone() for value in ours]
            for mine, other, copy in zip(ours, theirs, copies, strict=True):
                mine.copy_(other)
                other.copy_(copy)
        self.in_use = on

    def finish(self) -> None:
        """Let the model have the average for good. Its own weights are kept for a training that is extended."""
        self.use(False)
        self.own = copied(self.model.state_dict())
        self.model.load_state_dict(self.averaged.module.state_dict())

    def state(self) -> StateDict:
        return {"average": state_of_module(self.averaged), "own": self.own}

    def load(self, state: StateDict) -> None:
        load_module(self.averaged, state["average"])
        self.own = state["own"]

    def go_on(self) -> None:
        """Give the model its own weights back, if it still has the average."""
        own, self.own = self.own, None
        pairs = zip(self.model.parameters(), self.averaged.module.parameters(), strict=True)
        if own is not None and all(torch.equal(mine, average) for mine, average in pairs):
            self.model.load_state_dict(own)


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def refit_batch_norm(model: nn.Module, call: Any, inputs: Iterable[Any]) -> None:
    """Make the statistics of batch norm anew, from one pass over the data; modes stay as they are."""
    modes = [(module, module.training) for module in model.modules()]
    update_bn(((each,) for each in inputs), _Calls(model, call))
    for module, mode in modes:
        module.training = mode


class _Calls(nn.Module):
    """The model, called as the workload calls it."""

    def __init__(self, model: nn.Module, call: Any) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, inputs: Any) -> Any:
        return self.call(inputs)


def copied(state: StateDict) -> StateDict:
    """A state_dict of which nothing is shared with the live one."""
    return {name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
