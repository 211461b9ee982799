"""Hyper-parameters: the numbers in an optimizer's parameter groups, read and written by name.

The betas of a group are hyper-parameters of their own, `beta1` and `beta2`, since a tuple means one value per group.

The optimizer is the truth: what a state says was read of it, and only what a callback sets is written to it.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import nn

from ..core.errors import WorkloadError
from ..core.joint_hyper import shared_name, split
from ..core.state import Hyper
from .joint_optimizer import AnyOptimizer, JointOptimizer, each_of
from .modules import modules_of
from .sharded_model import check_made_after

_BETA = re.compile(r"beta([1-9])")


class Members:
    """The parameters in the groups of an optimizer, to see whether they are still the same.

    Attributes:
        groups: the parameters of each group.
        counts: how many groups each has of the optimizers that step together.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]] = (), counts: Sequence[int] = ()) -> None:
        self.groups = groups
        self.counts = counts

    @staticmethod
    def of(optimizer: AnyOptimizer) -> Members:
        counts = [len(each.param_groups) for each in each_of(optimizer).values()]
        return Members([list(group["params"]) for group in optimizer.param_groups], counts)

    def are_of(self, optimizer: AnyOptimizer) -> bool:
        """Whether the optimizer still has these parameters, in the same places."""
        groups = optimizer.param_groups
        if len(groups) != len(self.groups):
            return False
        for group, known in zip(groups, self.groups, strict=True):
            if len(parameters := group["params"]) != len(known) or not all(map(operator.is_, parameters, known)):
                return False
        return type(optimizer) is not JointOptimizer or self == Members.of(optimizer)

    def __eq__(self, other: object) -> bool:
        """Whether these are the same parameters, in the same places."""
        if not isinstance(other, Members) or self.counts != other.counts or len(self.groups) != len(other.groups):
            return False
        return all(
            len(one) == len(two) and all(map(operator.is_, one, two))
            for one, two in zip(self.groups, other.groups, strict=True)
        )

    def put_back(self, optimizer: AnyOptimizer) -> None:
        """Give the optimizer these groups of parameters again. Their numbers are not put back."""
        waiting = iter(self.groups)
        for each, count in zip(each_of(optimizer).values(), self.counts, strict=True):
            members, groups = list(itertools.islice(waiting, count)), each.param_groups
            del groups[count:]
            for group, parameters in zip(groups, members, strict=False):
                group["params"] = list(parameters)
            for parameters in members[len(groups) :]:
                each.add_param_group({"params": list(parameters)})

    __hash__ = None  # type: ignore[assignment]  # the parameters are compared by identity, and may be many


def read_groups(optimizer: AnyOptimizer) -> dict[str, Hyper]:
    """The numbers that all groups have: one value with a single group, otherwise a tuple of one per group.

    Of several optimizers also those that all groups of one have, by its name: `muon.momentum`.
    """
    hyper = _read(optimizer.param_groups)
    if isinstance(optimizer, JointOptimizer):
        for owner, each in optimizer.optimizers.items():
            hyper |= {f"{owner}.{name}": value for name, value in _read(each.param_groups).items()}
    return hyper


def _read(groups: Sequence[Mapping[str, Any]]) -> dict[str, Hyper]:
    if len(groups) == 1:
        return dict(_numbers(groups[0]))
    numbers = [_numbers(group) for group in groups]
    names = [name for name in numbers[0] if all(name in group for group in numbers)]
    return {name: tuple(group[name] for group in numbers) for name in names}


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in group.items():
        kind = type(value)
        if kind is float or kind is int:
            if name != "initial_lr":
                numbers[name] = float(value)
        elif value is None or kind is bool:  # as are most settings
            continue
        elif name == "betas" and isinstance(value, (tuple, list)):
            betas = {f"beta{i}": _number(beta) for i, beta in enumerate(value, start=1)}
            numbers |= {beta: number for beta, number in betas.items() if number is not None}
        elif name != "initial_lr" and (number := _number(value)) is not None:
            numbers[name] = number
    return numbers


def _number(value: object) -> float | None:
    """The value as a float, if it is a number or a tensor of one number; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.dtype is torch.bool or value.is_complex():
            return None
        return float(value.item())
    return float(value) if isinstance(value, Real) else None


def write_groups(optimizer: AnyOptimizer, changes: Mapping[str, Hyper]) -> None:
    """Set the named numbers in each group: one value for all groups, or a tuple of one per group.

    Of several optimizers, a number that is there by the name of one is written to that one alone. A number becomes a
    float, so that one that was whole, such as lr=1, can become 0.5; a tensor of floats is filled.
    """
    if not isinstance(optimizer, JointOptimizer):
        _write(optimizer.param_groups, changes)
        return
    parts = {shared_name(name) for name in changes}  # in a decision, `lr` is what `muon.lr` made of it
    wanted = {name: value for name, value in changes.items() if name not in parts}
    by_owner = all("." in name for name in wanted)
    own = wanted if by_owner else split(read_groups(optimizer), wanted)
    for owner, each in optimizer.optimizers.items():
        of_each = {name.removeprefix(f"{owner}."): v for name, v in own.items() if name.startswith(f"{owner}.")}
        _write(each.param_groups, of_each)


def _write(groups: Sequence[dict[str, Any]], changes: Mapping[str, Hyper]) -> None:
    for i, group in enumerate(groups):
        for name, value in changes.items():
            number = value[i] if isinstance(value, tuple) else value
            beta = None if name in group else _BETA.fullmatch(name)
            if beta is not None:
                betas, place = list(group["betas"]), int(beta[1]) - 1
                betas[place] = _written(betas[place], number)
                group["betas"] = type(group["betas"])(betas)
            else:
                group[name] = _written(group[name], number)


def check_groups(optimizer: AnyOptimizer, before: int) -> None:
    """Refuse an optimizer with another number of groups than before: it is not known which of them a value is for.

    Raises:
        WorkloadError: with the way to add a group.
    """
    now = len(optimizer.param_groups)
    if now != before:
        raise WorkloadError(
            f"the optimizer has {now} parameter groups, and had {before} when its numbers were read: add or remove "
            "groups in a command, after which they are read again, or between two calls of run"
        )


def _written(place: object, number: float) -> object:
    if not isinstance(place, torch.Tensor):
        return number
    if not place.is_floating_point():
        return torch.full_like(place, number, dtype=torch.get_default_dtype())
    return place.fill_(number)  # in place: a captured step reads this tensor


def check_parameters(model: nn.Module, optimizer: AnyOptimizer, loss_fn: object) -> None:
    """Refuse a model and an optimizer that do not fit together.

    Raises:
        WorkloadError: the model has no parameters, or the optimizer has parameters that belong
            neither to the model nor to the loss.
    """
    known = {id(parameter) for parameter in model.parameters()}
    if not known:
        raise WorkloadError("the model has no parameters: there is nothing to train")
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [parameter for parameter in optimized if id(parameter) not in known]
    if strangers:  # unless they are the loss's
        known |= {id(parameter) for module in modules_of(model, loss_fn).values() for parameter in module.parameters()}
        strangers = [parameter for parameter in strangers if id(parameter) not in known]
    if strangers:
        check_made_after(model, optimizer)
        raise WorkloadError(
            f"{len(strangers)} of the optimizer's {len(optimized)} parameters are not the model's: "
            "make the optimizer from model.parameters(), after the model is what it is to be"
        )


def stepped_parameters(model: nn.Module, optimizer: AnyOptimizer) -> list[nn.Parameter]:
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
    load = getattr(optimizer, "load_state_dict", None)
    if load is None:
        kind = type(optimizer).__name__
        raise WorkloadError(f"the optimizer cannot be restored: {kind} has no load_state_dict, which takes its state")
    load(saved)
    for group, device_of in zip(optimizer.param_groups, devices, strict=True):
        for name, device in device_of.items():
            if isinstance(group.get(name), torch.Tensor):
                group[name] = group[name].to(device)
