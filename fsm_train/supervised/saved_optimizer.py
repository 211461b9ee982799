"""What a checkpoint has of an optimizer, and of the gradients that wait for its step: read, compared, and loaded.

Rule of this file: torch loads a state into whatever has as many parameters. So classes, groups and the names of their
parameters are saved too, and compared before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any

import torch

from ..core.errors import CheckpointError, WorkloadError
from ..data.compiled import named_parameters
from .joint_optimizer import JointOptimizer, each_of, other_names
from .optimizer_state import load_exactly
from .training import Training


def optimizer_of(work: Training) -> list[Any] | dict[str, list[Any]]:
    """The optimizer's class, and the names of the parameters in each group; of several optimizers by name."""
    names = {id(parameter): name for name, parameter in _named_parameters(work)}
    of_each = {
        name: [type(each).__name__, [[names.get(id(p), "?") for p in group["params"]] for group in each.param_groups]]
        for name, each in each_of(work.optimizer).items()
    }
    return of_each if isinstance(work.optimizer, JointOptimizer) else of_each[""]


def _named_parameters(work: Training) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for kind, module in work.modules.items():
        yield from ((f"{kind}.{name}", parameter) for name, parameter in named_parameters(module))


def gradients_of(work: Training) -> dict[int, torch.Tensor]:
    """The gradients that wait for a step, by the place of their parameter. The tensors are the live ones."""
    return {i: p.grad.detach() for i, p in enumerate(work.parameters) if p.grad is not None}


def load_optimizer(work: Training, parts: Mapping[str, Any]) -> None:
    """Load the optimizer, with the groups that were added to it.

    Raises:
        WorkloadError: it is another one.
    """
    _add_saved_groups(work, parts["optimizer_of"])
    if other := _other_optimizers(optimizer_of(work), parts["optimizer_of"]):
        raise WorkloadError(f"the optimizer is another one than was saved, which torch would not notice: {other}")
    load_exactly(work.optimizer, parts["optimizer"])
    work.read_parameters()
    work.hyper()  # raises if what it holds now can't be read


def load_gradients(work: Training, gradients: Mapping[int, torch.Tensor]) -> None:
    """Let the parameters have these gradients, and no others.

    Raises:
        CheckpointError: one is of another shape than its parameter.
    """
    for i, gradient in gradients.items():
        if gradient.shape != work.parameters[i].shape:
            raise CheckpointError(f"its gradient {i} is of the shape {tuple(gradient.shape)}")
    for i, parameter in enumerate(work.parameters):
        saved = gradients.get(i)
        parameter.grad = None if saved is None else saved.to(parameter.device)


def _by_name(optimizer_of: list[Any] | dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What `optimizer_of` gave, by name; one optimizer alone has the name ""."""
    return optimizer_of if isinstance(optimizer_of, dict) else {"": optimizer_of}


def _add_saved_groups(work: Training, all_saved: Any) -> None:
    """Add the groups that the saved training added to its optimizers, if these have those before them."""
    ours, parameters = _by_name(optimizer_of(work)), dict(_named_parameters(work))
    for name, (saved_kind, saved_groups) in _by_name(all_saved).items():
        kind, groups = ours.get(name, ["", []])
        added = saved_groups[len(groups) :]
        if kind == saved_kind and groups == saved_groups[: len(groups)] and parameters.keys() >= {*chain(*added)}:
            for names in added:  # their numbers come from the state_dict of the optimizer
                group = {"params": [parameters[parameter] for parameter in names]}
                each_of(work.optimizer)[name].add_param_group(group)


def _other_optimizers(ours: Any, saved: Any) -> str:
    """The first difference of the optimizers; empty if there is none."""
    here, there = _by_name(ours), _by_name(saved)
    if other := other_names(tuple(here), tuple(there)):
        return other
    for name in here:
        if other := _other_optimizer(here[name], there[name]):
            return f"of {name!r}, {other}" if name else other
    return ""


def _other_optimizer(ours: list[Any], saved: list[Any]) -> str:
    """The first difference of the two; empty if there is none."""
    (kind, groups), (saved_kind, saved_groups) = ours, saved
    if kind != saved_kind:
        return f"it is of the class {kind}, and was of {saved_kind}"
    if len(groups) != len(saved_groups):
        return (
            f"it has {len(groups)} parameter groups, and had {len(saved_groups)}: make it with "
            "the groups that it began with, in the same order. Those that were added later are added by restore"
        )
    for i, (names, saved_names) in enumerate(zip(groups, saved_groups, strict=True)):
        for name, saved_name in zip_longest(names, saved_names, fillvalue="nothing"):
            if name != saved_name:
                return f"its group {i} has {name} in the place of {saved_name}"
    return ""
