"""Tensors that do not change, such as those of a frozen teacher: in a file of their own, which checkpoints share.

Rules of this file: that a tensor has not changed is never believed, but seen from a digest of its values at each save.
A checkpoint is complete in itself, and two that may be all there is to resume from share no bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from .history_files import TwoLines, linked, mark_of
from .writing import Parts, write_tensors

SMALLEST = 4096  # bytes that are worth a file

_Place = tuple[
    Any, ...
]  # the keys that lead to a tensor in the parts, such as ("modules", "model", "values", "0.bias")
_Files = Mapping[str, tuple[int, str]]


@attrs.frozen(eq=False)
class _Frozen:
    """Tensors that have not changed since the save before.

    Attributes:
        tensors: by place.
        name: of their file, which follows from their values.
    """

    tensors: Mapping[_Place, torch.Tensor]
    name: str


class FrozenFiles(TwoLines):
    """Writes the tensors that do not change into one checkpoint after the other, in a folder of checkpoints.

    The first two checkpoints have them written, the others link to these. A tensor that was changed between two saves
    is one of the others from then on. Each save reads all of them, for their digest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._digests: dict[_Place, str] = {}  # of the values at the last save
        self._changing: set[_Place] = set()
        self._files: dict[str, tuple[int, str]] = {}  # by name, those that were written

    def take_from(
        self, parts: Parts, path: Path, leaving: Container[Path] = ()
    ) -> tuple[Parts, Callable[[Path], _Files]]:
        """The parts with None for each tensor that has a file of its own, and what writes or links that file.

        Args:
            parts: of a training. Under "frozen" it has, by module, the names of tensors that may not change.
            path: where the checkpoint will be.
            leaving: the checkpoints that are replaced or removed once it is complete.
        """
        source = self.begin(path, leaving)
        rest = {name: part for name, part in parts.items() if name != "frozen"}
        frozen = self._frozen_in(parts)
        if frozen is None:
            return rest, lambda unfinished: {}

        def write(unfinished: Path) -> _Files:
            there = unfinished / frozen.name
            if frozen.name not in self._files or not linked(source, frozen.name, self._files[frozen.name], there):
                write_tensors(there, [[list(place), tensor] for place, tensor in frozen.tensors.items()], self._files)
            self.add({frozen.name: (mark_of(there), self._files[frozen.name])})
            return {frozen.name: self._files[frozen.name]}

        return without(rest, [*frozen.tensors]), write

    def _frozen_in(self, parts: Parts) -> _Frozen | None:
        """The tensors that are worth a file; None if there are too few."""
        candidates = {
            place: tensor
            for place in frozen_places(parts)
            if place not in self._changing
            and isinstance(tensor := _at(parts, place), torch.Tensor)
            and _has_plain_memory(tensor)
        }
        if sum(tensor.nbytes for tensor in candidates.values()) < SMALLEST:
            return None
        digests = _digests_of(candidates)
        self._changing |= {place for place, digest in digests.items() if self._digests.get(place, digest) != digest}
        self._digests = digests
        same = {place: tensor for place, tensor in candidates.items() if place not in self._changing}
        if not same:
            return None
        of_all = hashlib.sha256()
        for place, tensor in same.items():
            of_all.update(repr((place, tensor.dtype, tuple(tensor.shape), digests[place])).encode())
        return _Frozen(same, f"frozen-{of_all.hexdigest()[:32]}.pt")


def _has_plain_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_conj())


def _digests_of(tensors: Mapping[_Place, torch.Tensor]) -> dict[_Place, str]:
    """The sha256 of the values of each tensor, in hexadecimal; what has two names is read once."""
    known: dict[tuple[Any, ...], str] = {}
    digests: dict[_Place, str] = {}
    for place, tensor in tensors.items():
        memory = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if memory not in known:
            known[memory] = _digest_of(tensor)
        digests[place] = known[memory]
    return digests


def _digest_of(tensor: torch.Tensor) -> str:
    values = tensor.detach().to("cpu").contiguous()
    memory = (ctypes.c_ubyte * values.nbytes).from_address(values.data_ptr()) if values.nbytes else b""
    return hashlib.sha256(memory).hexdigest()


def frozen_places(parts: Parts) -> Iterator[_Place]:
    """Where the tensors are that may not change: in the modules, in averages, and in copies of weights to restore."""
    for module, names in parts.get("frozen", {}).items():
        for name in names:
            full = f"{module}.{name}"
            for kind in ("values", "buffers"):
                yield "modules", module, kind, name
                yield from (("weights", kept, 0, module, kind, name) for kept in parts["weights"])
            for kind in ("parameters", "buffers"):
                yield from (("averages", average, "average", kind, full) for average in parts["averages"])
                for kept, (_, averages) in parts["weights"].items():
                    yield from (("weights", kept, 1, average, kind, full) for average in averages)


def _at(value: Any, place: _Place) -> Any:
    """What is at this place; None if there is nothing."""
    for key in place:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def without(value: Any, places: Sequence[_Place]) -> Any:
    """A copy with None at these places, which shares all else."""
    if () in places:
        return None
    within: dict[Any, list[_Place]] = {}
    for first, *others in places:
        within.setdefault(first, []).append(tuple(others))
    if isinstance(value, Mapping):
        return {key: without(part, within[key]) if key in within else part for key, part in value.items()}
    return [without(part, within[i]) if i in within else part for i, part in enumerate(value)]


def put_frozen_into(parts: Parts, frozen: Sequence[tuple[Sequence[Any], torch.Tensor]]) -> None:
    """Put the tensors of a file where the parts of the same checkpoint have None.

    Args:
        parts: of a checkpoint.
        frozen: each tensor, after the keys that lead to it.

    Raises:
        Exception: of any kind, where the two do not belong together.
    """
    for (*way, last), tensor in frozen:
        inside: Any = parts
        for key in way:
            inside = inside[key]
        if inside[last] is not None:
            raise KeyError(f"{last!r:.60} is in both")
        inside[last] = tensor
