"""The states of the random number generators: read, and restored exactly."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch

from .in_code import in_code
from .layers import Layer, layers_of


@attrs.frozen
class Generators:
    """The states of all generators at one moment, or of those that matter.

    Attributes:
        python: of `random`; None if it was not noted.
        numpy: of `numpy.random`; None if NumPy is not imported, or it was not noted.
        cpu: of torch; None if it was not noted.
        cuda: of each CUDA device; empty if CUDA is not in use.
        own: further generators, such as a loader's, each with its state. They are of torch, of `random`
            or of NumPy.
    """

    python: tuple[Any, ...] | None
    numpy: Any
    cpu: torch.Tensor | None
    cuda: tuple[torch.Tensor, ...]
    own: tuple[tuple[Any, Any], ...]

    @staticmethod
    def now(own: Iterable[Any] = ()) -> Generators:
        """The present states; `own` are further generators, such as a loader's."""
        numpy = sys.modules.get("numpy")
        return Generators(
            python=random.getstate(),
            numpy=numpy.random.get_state() if numpy else None,
            cpu=torch.get_rng_state(),
            cuda=tuple(torch.cuda.get_rng_state_all()) if _cuda_in_use() else (),
            own=tuple((generator, state_of(generator)) for generator in own),
        )

    @staticmethod
    def of_torch(own: Iterable[Any] = ()) -> Generators:
        """The present states without those of `random` and `numpy.random`, which take long to read."""
        return Generators(
            python=None,
            numpy=None,
            cpu=torch.get_rng_state(),
            cuda=tuple(torch.cuda.get_rng_state_all()) if _cuda_in_use() else (),
            own=tuple((generator, state_of(generator)) for generator in own),
        )

    @property
    def are_all(self) -> bool:
        """Whether all of them were noted."""
        return self.python is not None

    def completed(self, later: Generators) -> Generators:
        """These states, with later ones of the generators that were not noted."""
        noted = {id(generator) for generator, _ in self.own}
        return Generators(
            python=later.python if self.python is None else self.python,
            numpy=later.numpy if self.numpy is None else self.numpy,
            cpu=later.cpu if self.cpu is None else self.cpu,
            cuda=self.cuda or later.cuda,
            own=(*self.own, *(pair for pair in later.own if id(pair[0]) not in noted)),
        )

    def again(self) -> Generators:
        """The states of the same generators now."""
        return Generators.now(generator for generator, _ in self.own)

    def changed(self, later: Generators) -> dict[object, str]:
        """The generators whose states differ from those of the same ones later, or were not noted, each in words."""
        numpy, their_numpy = (g.numpy and (g.numpy[1].tobytes(), *g.numpy[2:]) for g in (self, later))
        found: dict[object, str] = {}
        if self.python != later.python:
            found["python"] = "Python's generator"
        if numpy != their_numpy:
            found["numpy"] = "NumPy's generator"
        if self.cpu is None or later.cpu is None or not torch.equal(self.cpu, later.cpu):
            found["torch"] = "torch's generator"
        for i, ((generator, state), (_, then)) in enumerate(zip(self.own, later.own, strict=True)):
            if not _same(state, then):
                found[i] = f"a {type(generator).__name__} of its own"
        return found

    def shared_draws(self, now: Generators, then: Generators) -> str:
        """The generators that a pass draws from while it is read, and something else too; empty if there are none.

        Args:
            now: the generators after a pass that was only read; these are from its first batch.
            then: the generators at the same place in the training.
        """
        others = now.changed(then)
        return ", ".join(name for key, name in self.changed(now).items() if key in others)

    def put_back(self) -> None:
        """Restore all generators that were noted."""
        if self.python is not None:
            random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        if self.cpu is not None:
            torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        for generator, state in self.own:
            set_state(generator, state)


NO_GENERATORS = Generators(python=None, numpy=None, cpu=None, cuda=(), own=())
"""What a pass follows from that draws nothing."""


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def seed_of_rank(seed: int, rank: int) -> int:
    """The seed of one of several ranks, which drop out and augment differently; that of rank 0 is the seed itself.

    >>> seed_of_rank(7, 0), seed_of_rank(7, 1) == seed_of_rank(7, 2)
    (7, False)
    """
    if rank == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {rank}".encode()).digest()[:8], "big")


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy (if it is imported), torch and its devices."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**64)


def seed_own(generators: Iterable[Any], seed: int) -> None:
    """Bring these generators, of torch, `random` or NumPy, to states that follow from the seed alone."""
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed % 2**64)
        elif isinstance(generator, random.Random):
            generator.seed(seed)
        else:
            bits = getattr(generator, "bit_generator", getattr(generator, "_bit_generator", generator))
            bits.state = type(bits)(seed).state


def is_generator(value: object) -> bool:
    """Whether this is a random number generator whose state can be read and set: of torch, `random` or NumPy."""
    if isinstance(value, torch.Generator):
        return True
    if isinstance(value, random.Random):
        return type(value).getstate is random.Random.getstate
    return isinstance(value, _of_numpy())


def _of_numpy() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "random"):
        return ()
    return (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)


def state_of(generator: Any) -> Any:
    """The state of a generator, which does not change with it."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "get_state"):
        return generator.get_state(legacy=False)
    return getattr(generator, "bit_generator", generator).state


def set_state(generator: Any, state: Any) -> None:
    """Bring a generator to a state that `state_of` gave."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        getattr(generator, "bit_generator", generator).state = state


def _same(one: Any, other: Any) -> bool:
    """Whether two states of one generator are equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return all(_same(value, other[name]) for name, value in one.items())
    return bool(one.tobytes() == other.tobytes() if hasattr(one, "tobytes") else one == other)


def plain_state(state: Any) -> Any:
    """The state of a generator as tensors and plain values."""
    if isinstance(state, tuple):
        version, internal, gauss = state
        return ["python", version, torch.tensor(internal), gauss]
    return ["numpy", _plain(state)] if isinstance(state, Mapping) else state


def state_from(plain: Any) -> Any:
    """The inverse of `plain_state`."""
    if isinstance(plain, torch.Tensor):
        return plain
    kind, *parts = plain
    if kind == "python":
        version, internal, gauss = parts
        return version, tuple(internal.tolist()), gauss
    return _from_plain(parts[0])


def fits(generator: Any, plain: Any) -> bool:
    """Whether this plain state is one of such a generator."""
    if isinstance(generator, torch.Generator):
        return isinstance(plain, torch.Tensor)
    if isinstance(plain, torch.Tensor):
        return False
    if isinstance(generator, random.Random):
        return bool(plain[0] == "python")
    return bool(plain[0] == "numpy" and plain[1]["bit_generator"] == state_of(generator)["bit_generator"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if hasattr(value, "dtype"):  # an array, of unsigned integers
        return ["array", str(value.dtype), torch.from_numpy(value.astype("uint64").view("int64").copy())]
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _from_plain(part) for name, part in value.items()}
    if isinstance(value, list):
        _, dtype, tensor = value
        return tensor.numpy().view("uint64").astype(dtype)
    return value


def generators_of(**roots: object) -> list[Layer]:
    """The generators that can be reached from these loaders, functions and modules, each once, with their paths.

    Those of the whole process are not among them. The code of classes and functions is searched too, as for
    `rng = random.Random(0)` at the top of a script, in a class, or as a default argument.
    """
    layers = layers_of(**roots)
    return own_ones(generators_among([*layers, *in_code(layers, is_generator)]))


def generators_among(layers: Iterable[Layer]) -> list[Layer]:
    """The generators among these layers, each by a path that no other has."""
    found: dict[str, Layer] = {}
    for layer in layers:
        if is_generator(layer.part):
            path, others = layer.path, 1
            while path in found:
                path, others = f"{layer.path}#{others}", others + 1
            found[path] = Layer(path, layer.part)
    return [*found.values()]


def own_ones(generators: Iterable[Layer]) -> list[Layer]:
    """Those that are not of the whole process."""
    if not (generators := [*generators]):
        return generators
    common = {id(generator) for generator in _of_the_process()}
    return [layer for layer in generators if id(layer.part) not in common]


def order_generators(loader: object) -> list[torch.Generator]:
    """The generators of torch that a loader and its samplers have as `generator`, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(part, "generator", None) for part in parts]
    return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))


def _of_the_process() -> Iterator[object]:
    yield random._inst
    yield torch.default_generator
    if _of_numpy():
        yield sys.modules["numpy"].random.mtrand._rand
