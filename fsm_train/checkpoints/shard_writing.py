"""Writing the tensors that ranks share out: each rank its pieces, and rank 0 what they make up.

Rule of this file: no rank waits for another one here, and none has more than one piece in memory beside its shares.
What ranks tell each other is in `writing_together.py`. The files are those of torch's distributed checkpoints, written
by hand, since DCP's own writer exchanges plans in collectives of its own, and hides an error of the disk.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from ..core.errors import CheckpointError
from ..encoding import Json
from .frozen_files import without
from .shards import METADATA, Piece, Place, SharedTensor, gathered, is_whole, name_of_pieces, names_of
from .writing import Parts, write_bytes, write_saved


@attrs.frozen(eq=False)
class Own:
    """What this rank has of one tensor.

    Attributes:
        shape: of the whole tensor.
        offset: where the piece of this rank begins in it; None if it has none, or another rank writes the same.
        values: of the piece, the live ones.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...] | None
    values: torch.Tensor


@attrs.frozen(eq=False)
class Shares:
    """What this rank has of the tensors that ranks share out.

    Attributes:
        tensors: by name.
    """

    tensors: Mapping[str, Own] = {}

    def copied(self) -> Shares:
        """The same, with copies in the memory of the machine."""
        return Shares({name: attrs.evolve(own, values=_copied(own)) for name, own in self.tensors.items()})

    def write(self, folder: Path, rank: int, files: dict[str, tuple[int, str]]) -> dict[str, Json]:
        """Write the pieces of this rank, if there are any; size and sha256 of the file are added to `files`.

        Returns:
            For `write_metadata`: by name the offset, the shape, and the beginning and the length in the file.

        Raises:
            OSError: the disk refuses.
            RuntimeError: a device or a thread refuses.
        """
        mine = {name: own for name, own in self.tensors.items() if own.offset is not None}
        if not mine:
            return {}
        ranges = write_saved(folder / name_of_pieces(rank), map(_alone, mine.values()), files)
        return {
            name: [list(own.offset or ()), list(own.values.shape), *where]
            for (name, own), where in zip(mine.items(), ranges, strict=True)
        }

    def write_metadata(
        self, folder: Path, told: Sequence[Mapping[str, Any]], files: dict[str, tuple[int, str]]
    ) -> None:
        """Write which pieces make up each tensor, if there are any.

        Args:
            folder: of the checkpoint.
            told: by rank, what `write` gave.
            files: size and sha256 are added.

        Raises:
            OSError: the disk refuses.
            CheckpointError: the pieces do not make up the tensors.
        """
        if not self.tensors:
            return
        pieces = gathered(_pieces_of(rank, own) for rank, own in enumerate(told))
        shared = {
            name: SharedTensor(str(own.values.dtype).removeprefix("torch."), own.shape, pieces.get(name, ()))
            for name, own in self.tensors.items()
        }
        for name, tensor in shared.items():
            if not is_whole(tensor):
                raise CheckpointError(
                    f"what the ranks have of {name} does not make up the whole tensor: it is shared out in a way that "
                    "cannot be saved"
                )
        write_bytes(folder / METADATA, metadata_of(shared), files)


NO_SHARES = Shares()


def _pieces_of(rank: int, own: Mapping[str, Any]) -> dict[str, list[Piece]]:
    file = name_of_pieces(rank)
    return {
        name: [Piece(tuple(offset), tuple(shape), file, begin, length)]
        for name, (offset, shape, begin, length) in own.items()
    }


def taken_out(parts: Parts) -> tuple[Parts, Shares]:
    """The parts with None for each tensor that ranks share out, and what this rank has of these.

    The places are in the part `shards`, by the name of the tensor; one with several names, as tied weights have, is
    there once. Where nothing is shared, the parts are as they are given.
    """
    found = [*_shared_in(parts, ())]
    if not found:
        return parts, NO_SHARES
    tensors: dict[str, Own] = {}
    places: dict[str, list[list[Any]]] = {}
    by_memory: dict[Any, str] = {}
    for (name, place), (_, tensor) in zip(names_of(place for place, _ in found).items(), found, strict=True):
        known = by_memory.setdefault(_memory(tensor), name)
        if known == name:
            tensors[name] = _own(tensor)
        places.setdefault(known, []).append(list(place))
    return {**without(parts, [place for place, _ in found]), "shards": places}, Shares(tensors)


def _shared_in(value: Any, way: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, torch.Tensor):
        if hasattr(value, "full_tensor"):
            yield way, value
    elif isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _shared_in(inside, (*way, key))
    elif isinstance(value, (list, tuple)):
        for i, inside in enumerate(value):
            yield from _shared_in(inside, (*way, i))


def _memory(tensor: Any) -> tuple[Any, ...]:
    """What two names of one tensor have in common, and no others. A rank may have nothing of it, at no address."""
    own = tensor.to_local()
    return own.untyped_storage()._cdata, own.storage_offset(), tensor.shape, own.stride(), tensor.dtype


def _own(tensor: Any) -> Own:
    """What this rank has of a DTensor. Of ranks with the same, the first along each dimension of the mesh writes it."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    values, coordinate = tensor.detach().to_local(), tensor.device_mesh.get_coordinate()
    offset = None
    if coordinate is not None and not any(
        number and placement.is_replicate() for number, placement in zip(coordinate, tensor.placements, strict=True)
    ):
        shape, begins = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        offset = tuple(begins) if all(shape) else None
    return Own(tuple(tensor.shape), offset, values)


def _alone(own: Own) -> torch.Tensor:
    """The piece, in memory that has nothing else: torch.save writes all that a tensor is a part of."""
    values = own.values.to("cpu").contiguous()
    return values if values.untyped_storage().nbytes() == values.nbytes else values.clone()


def _copied(own: Own) -> torch.Tensor:
    return own.values if own.offset is None else own.values.to("cpu", copy=True)


def metadata_of(tensors: Mapping[str, SharedTensor]) -> bytes:
    """The content of `.metadata` for these tensors, as DCP pickles it."""
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    described: dict[str, dcp.TensorStorageMetadata | dcp.BytesStorageMetadata] = {}
    stored = {}
    for name, tensor in tensors.items():
        chunks = [
            dcp.ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape)) for piece in tensor.pieces
        ]
        properties = dcp.TensorProperties(dtype=getattr(torch, tensor.dtype))
        described[name] = dcp.TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        for i, piece in enumerate(tensor.pieces):
            index = dcp.MetadataIndex(name, piece.offset, i)
            stored[index] = _StorageInfo(piece.file, piece.begin, piece.length)
    return pickle.dumps(dcp.Metadata(described, storage_data=stored, storage_meta=dcp.StorageMeta()))


def places_in(parts: Mapping[str, Any]) -> Iterable[Place]:
    """Where tensors are that ranks share out."""
    return (place for place, _ in _shared_in(parts, ()))
