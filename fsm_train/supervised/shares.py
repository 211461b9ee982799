"""Tensors of which each rank has a share, as torch's DTensor: all shares together, or that of this rank.

Rule of this file: what is whole is asked of all ranks, in the same order on each; what is local asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

_WHOLE = frozenset({torch.Tensor, torch.nn.Parameter})
"""The types that no shared tensor has: what one lacks costs more to look for than what its type is."""


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether this process has only its share of the tensor."""
    return type(tensor) not in _WHOLE and hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all shares of it together, which all ranks have to ask for."""
    full: Any = tensor
    return full.full_tensor() if is_shared(tensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or this rank's share of it, in the same memory and without a graph."""
    shared: Any = tensor
    return shared.detach().to_local() if is_shared(tensor) else tensor


def differentiable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or this rank's share of it, by which a gradient comes to it."""
    shared: Any = tensor
    return shared.to_local() if is_shared(tensor) else tensor


def alike(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The tensors in lists that torch takes at once: whole ones, and those of each mesh of ranks."""
    tensors = [*tensors]
    if tensors and _WHOLE.issuperset(map(type, tensors)):
        return [tensors]
    groups: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(groups.values())


def largest(shares: Sequence[torch.Tensor]) -> torch.Tensor:
    """The largest absolute value in all shares of these tensors of one mesh, which all ranks have to ask for.

    The infinity norm of torch has none of an empty share, such as that of a layer with fewer rows than there are ranks.
    """
    own = [local(share).abs().max() for share in shares if local(share).numel()]
    value = torch.stack(own).max() if own else torch.zeros((), device=local(shares[0]).device)
    pair = torch.stack([value.nan_to_num(posinf=torch.inf), value.isnan().to(value.dtype)])  # NaN has no order
    mesh: Any = shares[0]
    for dimension in range(mesh.device_mesh.ndim):
        torch.distributed.all_reduce(pair, torch.distributed.ReduceOp.MAX, mesh.device_mesh.get_group(dimension))
    return torch.where(pair[1] > 0, torch.nan, pair[0])


def normal_like(tensor: torch.Tensor, std: float, generator: torch.Generator) -> torch.Tensor:
    """Normal noise as for the whole tensor: of one that is shared, this rank's share of that.

    Each rank draws all of it, so it takes the memory of the whole tensor for a moment.
    """
    if not is_shared(tensor):
        return torch.empty_like(tensor).normal_(0.0, std, generator=generator)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shared: Any = tensor
    noise = torch.empty(shared.shape, dtype=shared.dtype, device=shared.to_local().device)
    noise.normal_(0.0, std, generator=generator)
    shape, offset = compute_local_shape_and_global_offset(shared.shape, shared.device_mesh, shared.placements)
    return noise[tuple(slice(begin, begin + length) for begin, length in zip(offset, shape, strict=True))]


def equal_everywhere(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Whether both of each pair are equal, with the shares of all ranks if there are any."""
    equal = all(torch.equal(local(one), local(other)) for one, other in pairs)
    if not any(is_shared(one) for one, _ in pairs):
        return equal
    flag = torch.tensor(float(equal), device=local(pairs[0][0]).device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag.item())
