"""Gradients and buffers of several ranks made one, by hand: beside torch's wrapper, or in its place.

Rule of this file: all ranks call it at the same places, and each call is one exchange of each dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def sparse_parameters(modules: Iterable[nn.Module]) -> Set[nn.Parameter]:
    """Those whose gradients are sparse, of embeddings: as known without a gradient, so the same on all ranks."""
    within = (part for module in modules for part in module.modules() if getattr(part, "sparse", False) is True)
    return {parameter for part in within for parameter in part.parameters(recurse=False)}


def reduce_gradients(parameters: Sequence[nn.Parameter], sparse: Set[nn.Parameter], ranks: int) -> None:
    """Make each gradient the mean over ranks. One that a rank has not is zero there; that none has stays None.

    Args:
        parameters: the same on all ranks, in one order.
        sparse: those of them whose gradients are sparse.
        ranks: how many there are.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    dense = [parameter for parameter in trained if parameter not in sparse]
    for kind in dict.fromkeys((parameter.dtype, parameter.device) for parameter in dense):
        _reduce_dense([parameter for parameter in dense if (parameter.dtype, parameter.device) == kind], ranks)
    for parameter in trained:
        if parameter in sparse:
            _reduce_sparse(parameter, ranks)


def _reduce_dense(parameters: Sequence[nn.Parameter], ranks: int) -> None:
    has = torch.tensor([parameter.grad is not None for parameter in parameters]).to(parameters[0])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([_flat(gradients).div_(ranks), has])
    dist.all_reduce(flat)
    reduced = _parts(flat[: -len(parameters)], gradients)
    lacking = [i for i, parameter in enumerate(parameters) if parameter.grad is None]
    there = flat[-len(parameters) :].tolist() if lacking else ()  # which waits for the device
    for i in lacking:
        parameters[i].grad = reduced[i].clone() if there[i] else None
    for parameter, gradient in zip(parameters, reduced, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(gradient)


def _reduce_sparse(parameter: nn.Parameter, ranks: int) -> None:
    gradient = parameter.grad
    if gradient is None:
        gradient = torch.zeros_like(parameter).to_sparse(1)
    elif not gradient.is_sparse:  # of a batch that counts nothing
        gradient = gradient.to_sparse(1)
    parameter.grad = (gradient / ranks).coalesce()
    dist.all_reduce(parameter.grad)


def broadcast_buffers(modules: Iterable[nn.Module], averaged: Iterable[torch.Tensor] = ()) -> None:
    """Give all ranks the buffers of rank 0, such as the statistics of batch norms, and these averages of them."""
    _broadcast([*(buffer for module in modules for buffer in module.buffers()), *averaged])


def share_buffers_of_wrapper(wrapped: DistributedDataParallel) -> None:
    """Give all ranks those buffers of rank 0 that torch's wrapper shares, without those that it is to ignore."""
    ignored = wrapped.parameters_to_ignore
    _broadcast([buffer for name, buffer in wrapped.module.named_buffers() if name not in ignored])


def _broadcast(tensors: Iterable[torch.Tensor]) -> None:
    buffers = [buffer for buffer in tensors if buffer.numel()]
    for kind in dict.fromkeys((buffer.dtype, buffer.device) for buffer in buffers):
        alike = [buffer.detach() for buffer in buffers if (buffer.dtype, buffer.device) == kind]
        flat = _flat(alike)
        dist.broadcast(flat, 0)
        for buffer, values in zip(alike, _parts(flat, alike), strict=True):
            buffer.copy_(values)


def average_statistics(norms: Iterable[_BatchNorm]) -> None:
    """Make the statistics of batch norms the means over the batches of all ranks, of those over each rank's own."""
    for norm in norms:
        if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
            continue
        batches = norm.num_batches_tracked.to(norm.running_mean)
        flat = torch.cat([norm.running_mean * batches, norm.running_var * batches, batches[None]])
        dist.all_reduce(flat)
        mean, variance, of_all = torch.split(flat, [norm.running_mean.numel(), norm.running_var.numel(), 1])
        if of_all:
            norm.running_mean.copy_(mean / of_all)
            norm.running_var.copy_(variance / of_all)
            norm.num_batches_tracked.copy_(of_all[0])


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All elements in one row, copied."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _parts(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The row in parts of these shapes."""
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
