"""What of the parts of a training belongs to one rank alone, and how it is put where it was.

Rule of this file: it knows names and nesting, and no model. What ranks share is what they compute from the same
gradients: weights, the optimizer, averages. Buffers they do not share, since a forward pass changes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..core.errors import CheckpointError
from .frozen_files import frozen_places
from .writing import Parts

_OWN = frozenset(
    {
        *("generators", "beginning", "loader", "sources", "batches", "data"),
        *("loss", "meters", "extra", "ranks", "window", "scaler"),
    }
)
"""Parts that may differ from rank to rank. Gradients differ where they are not reduced yet."""

_WITH_BUFFERS = ("modules", "averages", "weights")


def own_parts(parts: Parts, *, with_gradients: bool) -> Parts:
    """What of these parts is of this rank alone, as its file has it.

    Args:
        parts: of a training on several ranks.
        with_gradients: whether the gradients that wait for a step are its own, and not the mean of all ranks.
    """
    names = _OWN | {"gradients"} if with_gradients else _OWN
    frozen = {*frozen_places(parts)}
    tensors = [
        [list(place), tensor]
        for name in _WITH_BUFFERS
        for place, tensor in _buffers(parts[name], (name,))
        if place not in frozen
    ]
    return {"parts": {name: parts[name] for name in sorted(names & parts.keys())}, "tensors": tensors}


def _buffers(value: Any, way: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """The buffers in a part, which are named in its `buffers`, each with the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            if key == "buffers" and isinstance(inside, Mapping):
                for kind in ("buffers", "values"):
                    named = value.get(kind, {})
                    yield from (((*way, kind, name), named[name]) for name in inside if _is_tensor(named, name))
            yield from _buffers(inside, (*way, key))
    elif isinstance(value, (list, tuple)):
        for i, inside in enumerate(value):
            yield from _buffers(inside, (*way, i))


def _is_tensor(named: Mapping[Any, Any], name: Any) -> bool:
    return isinstance(named.get(name), torch.Tensor)


def with_own_parts(parts: Parts, own: Any) -> Parts:
    """The parts of rank 0 with those of another rank in their place.

    Args:
        parts: of rank 0. What is nested in them is changed.
        own: what `own_parts` gave on the other rank.

    Raises:
        CheckpointError: it gave something else.
    """
    try:
        for (*way, last), tensor in own["tensors"]:
            inside: Any = parts
            for key in way:
                inside = inside[key]
            inside[last] = tensor
        return {**parts, **{name: own["parts"][name] for name in {*own["parts"]}}}
    except Exception as error:  # of what is nested in another way
        raise CheckpointError(f"it is not what a rank saves ({type(error).__name__}: {error})") from error
