"""A model whose parameters are shared out over the ranks, by torch's `fully_shard`.

Rule of this file: the user shards the model, or lets it be sharded here; what is shared is asked of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..core.commands import UseCompiledStep, UseMicroBatches
from ..core.errors import WorkloadError
from ..core.transition import Command
from ..data.batches import tensors
from ..data.compiled import uncompiled
from .joint_optimizer import AnyOptimizer, each_of
from .shares import is_shared

FSDP = 'Supervised(model, lambda model: AdamW(model.parameters()), …, parallel="fsdp")'
"""How a training is written that shards its model."""

_NOT_SHARDED = frozenset({"Adafactor", "LBFGS", "Rprop", "SparseAdam"})
"""Optimizers of torch whose step is not made for shares of a parameter."""

_OWN_GRADIENT = "the pieces of a batch, whose gradients are computed one by one and not by loss.backward()"
_WHY_NOT: Mapping[type[Command], str] = {
    UseMicroBatches: f"a sharded model is gathered and its gradients are reduced in loss.backward(), and not by "
    f"{_OWN_GRADIENT}: take smaller batches and accumulate(…)",
    UseCompiledStep: "a sharded model is gathered layer by layer in a step, which cannot be one graph: compile its "
    "layers, layer.compile(), before it is sharded",
}


def sharding_settings() -> tuple[str, ...]:
    """The settings of torch's fully_shard."""
    if not dist.is_available():
        return ()
    from torch.distributed.fsdp import fully_shard

    return tuple(inspect.signature(fully_shard).parameters)[1:]


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter of the model is shared out, also while it is gathered."""
    return bool(sharded_parts(model)) or any(map(is_shared, model.parameters()))


def computes_one_batch_together(model: nn.Module) -> bool:
    """Whether some ranks may compute the same batch, as those of a mesh for tensor parallelism do."""
    shared: list[Any] = [parameter for parameter in model.parameters() if is_shared(parameter)]
    return any(each.device_mesh.ndim > 1 or each.device_mesh.size() < dist.get_world_size() for each in shared)


def sharded_parts(model: nn.Module) -> Sequence[Any]:
    """The parts of the model that torch gathers by themselves, with the model; none of one that is not sharded."""
    return [part for part in model.modules() if getattr(type(part), "reshard", None) is not None]


def shard(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Share out the weights of rank 0: each part of the model's lists and sequences by itself, and then the rest.

    Args:
        model: whole.
        settings: of fully_shard.
    """
    from torch.distributed.fsdp import fully_shard

    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta and not nn.parameter.is_lazy(tensor):
            dist.broadcast(tensor.detach(), 0)
    for part in dict.fromkeys(_parts(model)):
        if part is not model and any(True for _ in part.parameters()):
            fully_shard(part, **settings)
    fully_shard(model, **settings)


def _parts(model: nn.Module) -> Iterable[nn.Module]:
    for child in model.children():
        if isinstance(model, (nn.ModuleList, nn.Sequential)):
            yield child
        else:
            yield from _parts(child)


def why_not(kind: type[Command], model: nn.Module) -> str:
    """Why a sharded model cannot be trained with such a command; "" if it can, or the model is none."""
    return _WHY_NOT.get(kind, "") if is_sharded(model) else ""


def check_kind(model: nn.Module, optimizer: AnyOptimizer, kind: str) -> None:
    """Refuse a model that is sharded where it is to be whole, and the other way round.

    Args:
        model: of this rank.
        optimizer: of it.
        kind: of `Supervised(parallel=…)`: "ddp" or "fsdp".

    Raises:
        WorkloadError: with what to write.
    """
    if not is_sharded(model):
        if kind == "fsdp":
            raise WorkloadError(
                "the model is not sharded: call torch.distributed.fsdp.fully_shard on its layers and on itself before "
                f"the optimizer is made. Or give the optimizer as a function, {FSDP}, and both are done here"
            )
        return
    if kind == "ddp":
        raise WorkloadError(
            'the model is sharded, and parallel="ddp" is for a whole one on each rank: write parallel="fsdp"'
        )
    for each in each_of(optimizer).values():
        if type(each).__name__ in _NOT_SHARDED:
            raise WorkloadError(
                f"{type(each).__name__} does not step shares of a parameter: take AdamW or SGD for a sharded model"
            )


def check_evaluations(evaluations: Sequence[Any]) -> None:
    """Refuse several evaluations of a sharded model that do not measure the same weights, or call it differently.

    A rank may be in one while the others are in the next, and all gather the weights for both.

    Raises:
        WorkloadError: one says other weights, or has another forward, than the first.
    """
    for each in evaluations[1:]:
        first = evaluations[0]
        if each.weights != first.weights:
            differ, write = "measure the same weights", "the same weights= in an Evaluation, or loaders alone"
        elif each.settings.forward != first.settings.forward:
            differ, write = "call the model the same way", "the same forward="
        else:
            continue
        raise WorkloadError(
            f"{first.argument} and {each.argument} do not {differ}, and the ranks gather a sharded model together, "
            f"also while one of them is in the next evaluation: give all of them {write}"
        )


def check_made_after(model: nn.Module, optimizer: AnyOptimizer) -> None:
    """Refuse an optimizer that was made before the model was sharded.

    Raises:
        WorkloadError: with what to write.
    """
    if not is_sharded(model):
        return
    known = {id(parameter) for parameter in uncompiled(model).parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in known and not is_shared(parameter):
                raise WorkloadError(
                    "the optimizer was made before the model was sharded, which gives the model new parameters: call "
                    f"fully_shard first, and then make the optimizer. Or give it as a function: {FSDP}"
                )


def refuse_whole_checkpoint(model: nn.Module, call: str) -> None:
    """Refuse to read or write a checkpoint of a sharded model.

    Raises:
        WorkloadError: it is sharded.
    """
    if is_sharded(model):
        raise WorkloadError(
            f"{call} is for a whole model, and each rank has only a share of this one: load before it is sharded"
        )


def no_gradient(output: Any, like: torch.Tensor) -> torch.Tensor:
    """A loss that gives each parameter a gradient of zero, through the forward pass that was done."""
    nothing = torch.zeros_like(like)
    for tensor in tensors(output):
        if tensor.requires_grad:
            nothing = nothing + (0.0 * tensor.nan_to_num()).sum().to(like)
    return nothing
