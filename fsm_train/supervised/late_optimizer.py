"""An optimizer that is given as a function of the model, to be made when the model is what it is to be.

Rule of this file: on one process the function is called as on several, so that the same script runs on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..data.compiled import uncompiled
from .arguments import check_call, device_of
from .parallel import Parallel, join_ranks
from .sharded_model import is_sharded, shard


def made_for(model: Any, optimizer: Any, parallel: Parallel | None, device: torch.device | str | None) -> Any:
    """The optimizer, or what the function that was given for it makes of the model.

    With `parallel="fsdp"` on several ranks, a model that is not sharded yet is sharded before, on its device.

    Args:
        model: a module; anything else is refused by who checks all arguments.
        optimizer: an optimizer, optimizers by name, or a function of the model that makes them.
        parallel, device: as `Supervised` is given them.

    Raises:
        WorkloadError: the function takes something else than the model.
    """
    is_made = isinstance(optimizer, (type, Mapping)) or hasattr(optimizer, "param_groups") or not callable(optimizer)
    if is_made or not isinstance(model, nn.Module) or isinstance(optimizer, nn.Module):
        return optimizer
    check_call("the function for optimizer", optimizer, "model")
    ranks = join_ranks(parallel, next((p.device for p in model.parameters()), None) if device is None else device)
    if ranks is not None and ranks.settings.kind == "fsdp" and not is_sharded(model):
        if device is not None:
            model.to(ranks.device(device_of(device)))
        shard(uncompiled(model), ranks.settings.of_torch)
    return optimizer(model)
