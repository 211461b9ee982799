"""The states of all generators as tensors and plain values, which a checkpoint can hold, and the way back.

Rule of this file: the keys are the format of `tensors.pt` on disk, and stay as they are.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from .generators import Generators, fits, plain_state, seed_of_rank, state_from
from .layers import Layer


def plain(generators: Generators, paths: Mapping[int, str]) -> dict[str, Any]:
    """The states of all generators as tensors and plain values; `paths` are those of its own ones, by id."""
    assert generators.python is not None
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


def new_for_rank(generators: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The states of rank 0 as `plain` gave them, with new ones for a rank that was not there, made from them.

    Those that loaders, samplers and functions have of their own stay: ranks may share their order.
    """
    drawn_so_far = hashlib.sha256(generators["cpu"].numpy().tobytes()).digest()
    seed = seed_of_rank(int.from_bytes(drawn_so_far[:8], "big"), rank)
    version, internal, gauss = random.Random(seed).getstate()
    new = {
        "python": [version, torch.tensor(internal), gauss],
        "cpu": torch.Generator().manual_seed(seed).get_state(),
        "cuda": [_of_device(state, seed) for state in generators["cuda"]],
    }
    if generators["numpy"] is not None and can_import_numpy():
        name, keys, *rest = sys.modules["numpy"].random.RandomState(seed % 2**32).get_state()
        new["numpy"] = [name, torch.from_numpy(keys.astype("int64")), *rest]
    return {**generators, **new}


def _of_device(state: torch.Tensor, seed: int) -> torch.Tensor:
    """The state of a generator of CUDA: its seed, and how much was drawn, each in 8 bytes."""
    begins = torch.frombuffer(bytearray(seed.to_bytes(8, sys.byteorder)), dtype=torch.uint8)
    return torch.cat([begins, torch.zeros(len(state) - len(begins), dtype=torch.uint8)])


def can_import_numpy() -> bool:
    """Import NumPy, if it can be imported: the training used it, so its generator has to be restored."""
    try:
        importlib.import_module("numpy")
    except ImportError:
        return False
    return True
