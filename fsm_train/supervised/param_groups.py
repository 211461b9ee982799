"""Hyper-parameters: the numbers in an optimizer's parameter groups, read and written by name.

A pair of betas is two hyper-parameters, `beta1` and `beta2`, since a tuple means one value per group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.errors import WorkloadError
from ..core.state import Hyper

_BETAS = {"beta1": 0, "beta2": 1}


def read_groups(optimizer: torch.optim.Optimizer) -> dict[str, Hyper]:
    """The numbers that all groups have: one value with a single group, otherwise a tuple of one per group."""
    numbers = [_numbers(group) for group in optimizer.param_groups]
    names = [name for name in numbers[0] if all(name in group for group in numbers)]
    return {name: numbers[0][name] if len(numbers) == 1 else tuple(g[name] for g in numbers) for name in names}


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in group.items():
        if name == "betas":
            numbers |= {beta: float(value[i]) for beta, i in _BETAS.items()}
        elif isinstance(value, torch.Tensor) and value.dim() == 0:
            numbers[name] = value.item()
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "initial_lr":
            numbers[name] = float(value)
    return numbers


def write_groups(optimizer: torch.optim.Optimizer, changes: Mapping[str, Hyper]) -> None:
    """Set the named numbers in each group: one value for all groups, or a tuple of one per group."""
    for i, group in enumerate(optimizer.param_groups):
        for name, value in changes.items():
            number = value[i] if isinstance(value, tuple) else value
            if name in _BETAS:
                betas = list(group["betas"])
                betas[_BETAS[name]] = number
                group["betas"] = tuple(betas)
            elif isinstance(group[name], torch.Tensor):
                group[name].fill_(number)  # in place: a captured step reads this tensor
            else:
                group[name] = type(group[name])(number) if isinstance(group[name], int) else number


def check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: object) -> None:
    """Refuse a model and an optimizer that do not fit together.

    Raises:
        WorkloadError: the model has no parameters, or the optimizer has parameters that belong
            neither to the model nor to the loss.
    """
    known = {id(parameter) for parameter in model.parameters()}
    if not known:
        raise WorkloadError("the model has no parameters: there is nothing to train")
    if isinstance(loss_fn, nn.Module):
        known |= {id(parameter) for parameter in loss_fn.parameters()}
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [parameter for parameter in optimized if id(parameter) not in known]
    if strangers:
        raise WorkloadError(
            f"{len(strangers)} of the optimizer's {len(optimized)} parameters are not the model's: "
            "make the optimizer from model.parameters(), after the model is what it is to be"
        )


def stepped_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of the optimizer: the model's in the model's order, then those of the loss.

    Other parameters of the model may have gradients too, but these are never zeroed, and do not count.
    """
    stepped = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
    ours = {id(parameter): parameter for parameter in model.parameters() if id(parameter) in stepped}
    return list((ours | stepped).values())


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state_dict, with the tensors in the parameter groups on the device where they are now.

    Torch moves the state of a parameter to its device, but leaves a rate that is a tensor where it was read.
    """
    devices = [
        {name: value.device for name, value in group.items() if isinstance(value, torch.Tensor)}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(saved)
    for group, device_of in zip(optimizer.param_groups, devices, strict=True):
        for name, device in device_of.items():
            if isinstance(group[name], torch.Tensor):
                group[name] = group[name].to(device)
