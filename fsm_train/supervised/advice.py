"""What is trained, in a line, and what cheap things are left lying. Nothing here changes anything.

`advice` is a pure function of a small record; `found` makes the record, without iterating a loader.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from .workload import Supervised

_logger = logging.getLogger("fsm_train")


@attrs.frozen
class Found:
    """What speed depends on, and a setting changes.

    Attributes:
        device: the kind of device, such as "cuda".
        optimizer: the name of its class.
        can_fuse: it has a fused form for these parameters, which would pay, and nobody has said yes or no to it.
        one_by_one: it was told to go through the parameters one by one (foreach=False).
        workers: of the training DataLoader; None if it is none.
        pinned: its batches are put into pinned memory.
        in_memory: its samples are tensors that are in memory already.
    """

    device: str = "cpu"
    optimizer: str = "SGD"
    can_fuse: bool = False
    one_by_one: bool = False
    workers: int | None = None
    pinned: bool = False
    in_memory: bool = False


def advice(found: Found) -> tuple[str, ...]:
    """What would cost a word, and is left lying.

    >>> advice(Found(optimizer="Adam", can_fuse=True))
    ('Adam(…, fused=True) takes a step in one kernel instead of many',)
    """
    said = []
    if found.can_fuse:
        said.append(f"{found.optimizer}(…, fused=True) takes a step in one kernel instead of many")
    elif found.one_by_one and found.device == "cuda":
        said.append(f"{found.optimizer} without foreach=False takes a step for all parameters at once")
    if found.device == "cuda" and found.workers is not None:
        if not found.pinned:
            said.append("DataLoader(…, pin_memory=True) lets a batch be copied while another one is trained")
        if found.workers == 0 and not found.in_memory:
            said.append("DataLoader(…, num_workers=4), say, lets samples be read while others are trained")
    return tuple(said)


def found_in(optimizer: torch.optim.Optimizer, loader: Iterable[Any], device: torch.device) -> Found:
    """The record of these parts, before anything was trained."""
    found = Found(
        device.type,
        type(optimizer).__name__,
        can_fuse=device.type in ("cpu", "cuda") and all(map(_fuses, optimizer.param_groups)),
        one_by_one=any(group.get("foreach") is False for group in optimizer.param_groups),
    )
    if not isinstance(loader, DataLoader):
        return found
    tensors = loader.dataset.tensors if isinstance(loader.dataset, TensorDataset) else ()
    there = any(tensor.device.type == "cuda" for tensor in tensors)  # such cannot be pinned, and need not
    pinned = loader.pin_memory or there
    return attrs.evolve(found, workers=loader.num_workers, pinned=pinned, in_memory=bool(tensors))


def _fuses(group: dict[str, Any]) -> bool:
    if group.get("fused", False) is not None or group.get("differentiable"):
        return False  # there is no such setting, or it was set
    parameters = group["params"]
    if parameters and parameters[0].device.type == "cpu" and group.get("momentum") == 0:
        return False  # plain gradient descent is no faster for it
    return all(parameter.is_floating_point() for parameter in parameters)


def summary(work: Supervised) -> str:
    """What is trained on what, in a line, and a line for each thing that is left lying."""
    total = sum(parameter.numel() for parameter in work.model.parameters())
    trained = sum(parameter.numel() for parameter in work.parameters if parameter.requires_grad)
    head = (
        f"{type(work.model).__name__} of {total:,} parameters, {trained:,} of them trained by "
        f"{type(work.optimizer).__name__} on {work.device}"
    )
    return "\n".join([head, *(f"advice: {line}" for line in advice(found_in(work.optimizer, work.train, work.device)))])


def tell_once(work: Supervised) -> None:
    """Log the summary, when the first run of a workload begins."""
    if not work.told:
        work.told = True
        _logger.info("%s", summary(work))
