"""The modules of a training, and all that is in one: its state_dict, the buffers that it leaves out, the modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.errors import WorkloadError

if TYPE_CHECKING:
    from .workload import Supervised


def modules_of(work: Supervised) -> dict[str, nn.Module]:
    """The model, and a loss that is a module: it may have parameters, buffers and a mode too."""
    loss = {"loss": work.loss_fn} if isinstance(work.loss_fn, nn.Module) else {}
    return {"model": work.model, **loss}


def state_of_module(module: nn.Module) -> dict[str, Any]:
    return {
        "values": module.state_dict(),
        "buffers": {name: buffer.detach() for name, buffer in module.named_buffers()},
        "modes": {name: part.training for name, part in module.named_modules()},
    }


def load_module(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Put back what `state_of_module` gave, exactly.

    Raises:
        RuntimeError: from torch, when names or shapes differ.
        WorkloadError: when types differ, which torch would convert without a word, or a buffer is another one.
    """
    values, buffers = saved["values"], saved["buffers"]
    for name, ours in module.state_dict().items():
        theirs = values.get(name)
        if isinstance(theirs, torch.Tensor) and isinstance(ours, torch.Tensor) and ours.dtype != theirs.dtype:
            raise WorkloadError(
                f"{name} is of type {ours.dtype} and was saved as {theirs.dtype}: convert it afterwards"
            )
    module.load_state_dict(values)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name not in buffers or buffers[name].shape != buffer.shape:
                was = tuple(buffers[name].shape) if name in buffers else "not there"
                raise WorkloadError(f"the buffer {name} has the shape {tuple(buffer.shape)}, and was {was} when saved")
            buffer.copy_(buffers[name])
    for name, part in module.named_modules():
        part.training = saved["modes"].get(name, part.training)
