"""One-line summary of the training, and cheap speed-ups that are not used. Nothing here changes anything.

`advice` is a pure function of a small record; `inspect_settings` makes the record, without iterating a loader.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, TensorDataset

from .joint_optimizer import AnyOptimizer, each_of, kinds_of
from .shares import is_shared
from .training import Training

SUM = (
    'loss_fn has reduction="sum", and a loss is to be the mean over the batch: train_loss and valid_loss are means '
    "of the batches' sums, the gradient grows with the batch, and accumulate(…) does not give that of the union. "
    'Pass reduction="mean"; for a loss per token or graph also Supervised(…, samples=…), which says how many there are'
)

_FUSED_FOR_SHARES = frozenset({"Adam", "AdamW"})
"""Whose fused step is made for shares of a parameter."""

_logger = logging.getLogger("fsm_train")


@attrs.frozen
class PerformanceSettings:
    """The settings that speed depends on.

    Attributes:
        device: the kind of device, such as "cuda".
        optimizer: the name of its class; of several, of the first that can be fused, or of all.
        can_fuse: it has a fused form for these parameters, which would be faster, and `fused` is not set.
        one_by_one: it updates the parameters one by one (foreach=False).
        workers: of the training DataLoader; None if the data is no DataLoader.
        pinned: its batches are in pinned memory.
        in_memory: its samples are tensors in memory.
    """

    device: str = "cpu"
    optimizer: str = "SGD"
    can_fuse: bool = False
    one_by_one: bool = False
    workers: int | None = None
    pinned: bool = False
    in_memory: bool = False


def advice(settings: PerformanceSettings) -> tuple[str, ...]:
    """The speed-ups that one word in the code would give, a sentence each.

    >>> advice(PerformanceSettings(optimizer="Adam", can_fuse=True))
    ('Adam(…, fused=True) takes a step in one kernel instead of many',)
    """
    lines = []
    if settings.can_fuse:
        lines.append(f"{settings.optimizer}(…, fused=True) takes a step in one kernel instead of many")
    elif settings.one_by_one and settings.device == "cuda":
        lines.append(f"{settings.optimizer} without foreach=False takes a step for all parameters at once")
    if settings.device == "cuda" and settings.workers is not None:
        if not settings.pinned:
            lines.append("DataLoader(…, pin_memory=True) lets a batch be copied while another one is trained")
        if settings.workers == 0 and not settings.in_memory:
            lines.append("DataLoader(…, num_workers=4), say, lets samples be read while others are trained")
    return tuple(lines)


def inspect_settings(optimizer: AnyOptimizer, loader: Iterable[Any], device: torch.device) -> PerformanceSettings:
    """The settings of these parts."""
    several = each_of(optimizer).values()
    fusible = [each for each in several if device.type in ("cpu", "cuda") and _has_fused_step(each)]
    settings = PerformanceSettings(
        device.type,
        type(fusible[0]).__name__ if fusible else kinds_of(optimizer),
        can_fuse=bool(fusible),
        one_by_one=any(group.get("foreach") is False for group in optimizer.param_groups),
    )
    if not isinstance(loader, DataLoader):
        return settings
    tensors = loader.dataset.tensors if isinstance(loader.dataset, TensorDataset) else ()
    on_device = any(tensor.device.type == "cuda" for tensor in tensors)  # such samples cannot be pinned, and need not
    pinned = loader.pin_memory or on_device
    return attrs.evolve(settings, workers=loader.num_workers, pinned=pinned, in_memory=bool(tensors))


def _has_fused_step(optimizer: torch.optim.Optimizer) -> bool:
    shared = any(is_shared(parameter) for group in optimizer.param_groups for parameter in group["params"])
    known = not shared or type(optimizer).__name__ in _FUSED_FOR_SHARES
    return known and all(map(_fuses, optimizer.param_groups))


def _fuses(group: dict[str, Any]) -> bool:
    if group.get("fused", False) is not None or group.get("differentiable"):
        return False  # it has no such setting, or the user set it
    parameters = group["params"]
    if parameters and parameters[0].device.type == "cpu" and group.get("momentum") == 0:
        return False  # plain gradient descent is no faster when it is fused
    return all(parameter.is_floating_point() for parameter in parameters)


def sizes(work: Training) -> str:
    """How many parameters the model has, and how many of them are trained, in words.

    The parameters that lazy layers have not initialized yet are counted as tensors.
    """
    ours = [parameter for parameter in work.model.parameters() if not is_lazy(parameter)]
    waiting = sum(map(is_lazy, work.model.parameters()))
    total = sum(parameter.numel() for parameter in ours)
    trained = sum(p.numel() for p in work.parameters if p.requires_grad and not is_lazy(p))
    lazy = f" and {waiting} lazy tensors" if waiting else ""
    return f"{total:,} parameters{lazy}, {trained:,} of them trained"


def summary(work: Training) -> str:
    """What is trained on what, in a line, and a line for each piece of advice."""
    head = f"{type(work.model).__name__} of {sizes(work)} by {kinds_of(work.optimizer)} on {work.device}"
    settings = inspect_settings(work.optimizer, work.train, work.device)
    return "\n".join([head, *(f"advice: {line}" for line in advice(settings))])


def warn_of_sum(loss_fn: object) -> None:
    """Warn of a loss that says of itself that it is a sum."""
    if _reduction(loss_fn) == "sum":
        warnings.warn(SUM, UserWarning, stacklevel=4)


def _reduction(loss_fn: object) -> object:
    """What the loss says of its reduction: a module's attribute, or the argument of a function."""
    while isinstance(loss_fn, functools.partial) and "reduction" not in loss_fn.keywords:
        loss_fn = loss_fn.func
    if isinstance(loss_fn, functools.partial):
        return loss_fn.keywords["reduction"]
    loss_fn = getattr(loss_fn, "__self__", loss_fn)  # the forward of a module, say
    if hasattr(loss_fn, "reduction"):
        return loss_fn.reduction
    defaults = getattr(loss_fn, "__kwdefaults__", None) or {}
    code, positional = getattr(loss_fn, "__code__", None), getattr(loss_fn, "__defaults__", None) or ()
    if code is not None:
        names = code.co_varnames[: code.co_argcount]
        defaults = {**defaults, **dict(zip(names[len(names) - len(positional) :], positional, strict=True))}
    return defaults.get("reduction")


def log_summary_once(work: Training) -> None:
    """Log the summary when the first run of this training starts."""
    if not work.summary_logged:
        work.summary_logged = True  # progress asks for this too
        if _logger.isEnabledFor(logging.INFO):
            _logger.info("%s", summary(work))
