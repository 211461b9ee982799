"""The states of all generators as tensors and plain values, which a checkpoint can hold, and the way back.

Rule of this file: the keys are the format of `tensors.pt` on disk, and stay as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from .generators import Generators, fits, plain_state, state_from
from .layers import Layer


def plain(generators: Generators, paths: Mapping[int, str]) -> dict[str, Any]:
    """The states of the generators as tensors and plain values; `paths` are those of its own ones, by id."""
    version, internal, gauss = generators.python
    numpy = generators.numpy
    return {
        "python": [version, torch.tensor(internal), gauss],
        "numpy": None if numpy is None else [numpy[0], torch.from_numpy(numpy[1].astype("int64")), *numpy[2:]],
        "cpu": generators.cpu,
        "cuda": list(generators.cuda),
        "own": {paths[id(own)]: plain_state(state) for own, state in generators.own if id(own) in paths},
    }


def generators_of_plain(parts: Mapping[str, Any], own: Iterable[tuple[Any, Any]]) -> Generators:
    """The inverse of `plain`; `own` are further generators, each with its state."""
    version, internal, gauss = parts["python"]
    numpy = None
    if parts["numpy"] is not None and can_import_numpy():
        name, keys, *rest = parts["numpy"]
        numpy = (name, keys.numpy().astype("uint32"), *rest)
    return Generators(
        python=(version, tuple(internal.tolist()), gauss),
        numpy=numpy,
        cpu=parts["cpu"],
        cuda=tuple(parts["cuda"][: torch.cuda.device_count()]),
        own=tuple(own),
    )


def own_states(saved: Mapping[str, Any], layers: Iterable[Layer]) -> Iterator[tuple[Any, Any]]:
    """The generators of these layers that have a state among the saved ones, each with it."""
    for layer in layers:
        if layer.path in saved and fits(layer.part, saved[layer.path]):
            yield layer.part, state_from(saved[layer.path])


def can_import_numpy() -> bool:
    """Import NumPy, if it can be imported: the training used it, so its generator has to be restored."""
    try:
        importlib.import_module("numpy")
    except ImportError:
        return False
    return True
