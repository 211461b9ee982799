"""The modules of a training, and their whole state: the state_dict, the buffers outside of it, the modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.errors import WorkloadError


def modules_of(model: nn.Module, loss_fn: object) -> dict[str, nn.Module]:
    """The model, and the loss if it is a module, which may have parameters, buffers and a mode too."""
    return {"model": model, "loss": loss_fn} if isinstance(loss_fn, nn.Module) else {"model": model}


def state_of_module(module: nn.Module) -> dict[str, Any]:
    """The state_dict, all buffers, and the mode of each submodule. The tensors are the live ones."""
    return {
        "values": module.state_dict(),
        "buffers": {name: buffer.detach() for name, buffer in module.named_buffers()},
        "modes": {name: part.training for name, part in module.named_modules()},
    }


def load_module(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore what `state_of_module` gave, exactly.

    Raises:
        RuntimeError: from torch, if names or shapes differ.
        WorkloadError: dtypes differ, which torch would convert in silence, or a buffer has another name or shape.
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
