"""The states of the random number generators: read, and restored exactly."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch


@attrs.frozen
class Generators:
    """The states of all generators at one moment.

    Attributes:
        python: of `random`.
        numpy: of `numpy.random`; None if NumPy is not imported.
        cpu: of torch.
        cuda: of each CUDA device; empty if CUDA is not in use.
        own: further generators, such as a loader's, each with its state.
    """

    python: tuple[Any, ...]
    numpy: Any
    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]
    own: tuple[tuple[torch.Generator, torch.Tensor], ...]

    @staticmethod
    def now(own: Iterable[torch.Generator] = ()) -> Generators:
        """The present states; `own` are further generators, such as a loader's."""
        numpy = sys.modules.get("numpy")
        return Generators(
            python=random.getstate(),
            numpy=numpy.random.get_state() if numpy else None,
            cpu=torch.get_rng_state(),
            cuda=tuple(torch.cuda.get_rng_state_all()) if _cuda_in_use() else (),
            own=tuple((generator, generator.get_state()) for generator in own),
        )

    def same_as(self, other: Generators) -> bool:
        """Whether the states of Python, NumPy and torch on the CPU are equal."""
        ours, theirs = (g.numpy and (g.numpy[1].tobytes(), *g.numpy[2:]) for g in (self, other))
        return self.python == other.python and ours == theirs and torch.equal(self.cpu, other.cpu)

    def put_back(self) -> None:
        """Restore all generators."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        for generator, state in self.own:
            generator.set_state(state)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy (if it is imported), torch and its devices."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators_of(loader: object) -> Iterator[torch.Generator]:
    """The generators of a loader and its samplers, each once. The dataset is not inspected."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    seen: list[torch.Generator] = []
    for part in parts:
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in seen):
            seen.append(generator)
            yield generator
