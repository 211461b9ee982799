"""Tensors that do not change, such as those of a frozen teacher: in a file of their own, which checkpoints share.

Rules of this file: that a tensor has not changed is never believed, but seen from a digest of its values at each save.
A checkpoint is complete in itself, and two that may be all there is to resume from share no bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from .history_files import TwoLines, linked, mark_of
from .writing import Parts, write_tensors

SMALLEST = 4096  # bytes that are worth a file
KINDS = ("values", "buffers")

_Place = tuple[str, str, str]  # the module, "values" or "buffers", and the name
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
        rest["modules"] = {module: dict(state) for module, state in parts["modules"].items()}
        for module, kind, _ in frozen.tensors:
            state = rest["modules"][module]
            state[kind] = {n: None if (module, kind, n) in frozen.tensors else v for n, v in state[kind].items()}

        def write(unfinished: Path) -> _Files:
            there = unfinished / frozen.name
            if frozen.name not in self._files or not linked(source, frozen.name, self._files[frozen.name], there):
                write_tensors(there, _nested(frozen.tensors), self._files)
            self.add({frozen.name: (mark_of(there), self._files[frozen.name])})
            return {frozen.name: self._files[frozen.name]}

        return rest, write

    def _frozen_in(self, parts: Parts) -> _Frozen | None:
        """The tensors that are worth a file; None if there are too few."""
        candidates = {
            (module, kind, name): tensor
            for module, names in parts.get("frozen", {}).items()
            for kind in KINDS
            for name in names
            if isinstance(tensor := parts["modules"][module][kind].get(name), torch.Tensor)
            and (module, kind, name) not in self._changing
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


def _nested(tensors: Mapping[_Place, torch.Tensor]) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    nested: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for (module, kind, name), tensor in tensors.items():
        nested.setdefault(module, {}).setdefault(kind, {})[name] = tensor
    return nested


def put_frozen_into(parts: Parts, frozen: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]]) -> None:
    """Put the tensors of a file where the parts of the same checkpoint have None.

    Raises:
        AttributeError, KeyError, TypeError: the two do not belong together.
    """
    for module, kinds in frozen.items():
        for kind, tensors in kinds.items():
            state = parts["modules"][module][kind]
            for name, tensor in tensors.items():
                if state[name] is not None:
                    raise KeyError(f"{name} is in both")
                state[name] = tensor
