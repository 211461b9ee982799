"""How a sharded model shares out what a checkpoint has: each tensor as the parameter that it belongs to.

Rule of this file: what was saved of a whole model and of a sharded one differs in nothing but how it is held. So either
is restored by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from ..checkpoints.shard_reading import Like, whole
from ..checkpoints.shard_writing import places_in
from ..checkpoints.shards import Place
from ..checkpoints.writing import Parts
from ..core.errors import WorkloadError
from ..data.compiled import named_parameters, state_dict_of
from .shares import is_shared
from .training import Training


def like(work: Training, parts: Mapping[str, Any]) -> Like:
    """How this training shares out the tensor at each place of these parts: by the name of its parameter."""
    live = {
        f"{kind}.{name}": value
        for kind, module in work.modules.items()
        for name, value in state_dict_of(module).items()
        if isinstance(value, torch.Tensor) and is_shared(value)
    }
    if not live:
        return whole
    of_optimizers = parts["optimizer_of"] if isinstance(parts["optimizer_of"], dict) else {"": parts["optimizer_of"]}
    by_optimizer = {of: [*chain(*groups)] for of, (_, groups) in of_optimizers.items()}
    stepped = {*chain(*by_optimizer.values())}
    parameters = (f"{kind}.{name}" for kind, module in work.modules.items() for name, _ in named_parameters(module))
    with_gradients = [name for name in parameters if name in stepped]  # the order of `Training.parameters`

    def of_place(place: Place) -> torch.Tensor | None:
        match place:
            case ("optimizer", "state", int(i), *_):
                name = by_optimizer[""][i]
            case ("optimizer", "optimizers", str(of), "state", int(i), *_):
                name = by_optimizer[of][i]
            case ("gradients", int(i)):
                name = with_gradients[i]
            case (*_, str(kind), "values" | "buffers", str(own)) if f"{kind}.{own}" in live:
                name = f"{kind}.{own}"
            case (*_, "parameters" | "buffers", str(own)):  # of an average
                name = own
            case _:
                return None
        return live.get(name)

    return of_place


def check_shared(work: Training, parts: Parts) -> None:
    """Refuse to save a tensor that is shared out and could not be when it is restored.

    Raises:
        WorkloadError: it is not of the shape of a parameter.
    """
    places = [*places_in(parts)]
    of_place = like(work, parts) if places else whole
    for place in places:
        value: Any = parts
        for key in place:
            value = value[key]
        if (parameter := of_place(place)) is None or parameter.shape != value.shape:
            raise WorkloadError(
                f"{'.'.join(map(str, place))} is shared out over the ranks and has the shape of no parameter, by which "
                "a checkpoint would share it out again: hold it as a whole tensor on each rank"
            )


def shared_out(work: Training, parts: Parts) -> Parts:
    """The parts with this rank's shares in the place of tensors that this training shares out."""
    of_place = like(work, parts)
    if of_place is whole:
        return parts
    return {name: _shared_out(part, (name,), of_place) for name, part in parts.items()}


def _shared_out(value: Any, way: Place, of_place: Like) -> Any:
    if isinstance(value, torch.Tensor):
        given: Any = value
        to: Any = None if is_shared(value) else of_place(way)
        if to is None or to.shape != value.shape:
            return value
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(given.to(to.device), to.device_mesh, to.placements, src_data_rank=None)
    if type(value) is dict:
        return {key: _shared_out(inside, (*way, key), of_place) for key, inside in value.items()}
    if type(value) is list:
        return [_shared_out(inside, (*way, i), of_place) for i, inside in enumerate(value)]
    return value
