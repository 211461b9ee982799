"""Reading the tensors that ranks shared out, by any number of ranks, or by one process without a group.

Rule of this file: each rank reads alone what it needs, in any order, so it waits for nobody. Every byte is verified
before anything of it is loaded, and what is verified is what is read.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import attrs
import torch

from ..core.errors import CheckpointError
from .dcp_metadata import read_metadata
from .manifest import Checkpoint, verified
from .reading import load_plain
from .shards import METADATA, Piece, Place, SharedTensor, common, is_shard_file
from .writing import Parts

Like = Callable[[Place], torch.Tensor | None]
"""The tensor of a training that is shared out as one that is read for this place in its parts; None for a whole one."""


def whole(place: Place) -> None:
    """Each tensor as a whole, as one process has it."""


@attrs.frozen(eq=False)
class _Target:
    """A tensor that is being read.

    Attributes:
        own: what of it is read, as this rank will have it.
        offset: where that begins in the tensor.
        result: what the training is given; it has the memory of `own`.
    """

    own: torch.Tensor
    offset: tuple[int, ...]
    result: torch.Tensor


def put_shards_into(
    checkpoint: Checkpoint,
    parts: Parts,
    like: Like = whole,
    only: Callable[[Place], bool] = lambda place: True,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Put the tensors that ranks shared out where the parts of their checkpoint have None.

    Together the ranks verify each file, also where nobody needs it.

    Args:
        checkpoint: any; nothing is done for one without shared tensors.
        parts: of it, which are changed: the part `shards` goes.
        like: says how each is shared out now.
        only: which places are read, by the first place of a tensor; the others stay None.
        rank, ranks: the number of this one, and how many read.

    Raises:
        CheckpointError: a file is damaged, or does not hold what it should.
    """
    files = [name for name in checkpoint.files if is_shard_file(name)]
    places = parts.pop("shards", {})
    if not files and not places:
        return
    path = checkpoint.path / METADATA
    if not files:
        raise CheckpointError(
            f"{checkpoint.path} lacks tensors that ranks shared out, and its manifest names no file of them"
        )
    try:
        with verified(checkpoint, METADATA) as file:
            shared = read_metadata(file.read(), {name: size for name, (size, _) in checkpoint.files.items()})
        _check_places(places, shared, parts)
        wanted = {name: tuple(places[name][0]) for name in shared}
        targets = {name: _target(shared[name], like(place)) for name, place in wanted.items() if only(place)}
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a manipulated file can raise anything
        raise CheckpointError(f"{path} was refused: {error}") from error
    waiting: dict[str, list[tuple[str, Piece]]] = defaultdict(list)
    for name, target in targets.items():
        for piece in shared[name].pieces:
            if common(piece.offset, piece.shape, target.offset, target.own.shape) is not None:
                waiting[piece.file].append((name, piece))
    mine = {name for i, name in enumerate(sorted(files)) if i % ranks == rank and name != METADATA}
    for name in sorted(mine | waiting.keys()):
        with verified(checkpoint, name) as file:
            for tensor, piece in sorted(waiting[name], key=lambda one: one[1].begin):
                _read_piece(checkpoint, file, shared[tensor], piece, targets[tensor])
    for name, target in targets.items():
        for place in places[name]:
            _put(parts, place, target.result)


def _check_places(places: Any, shared: Mapping[str, SharedTensor], parts: Parts) -> None:
    """Refuse places that are not those of the tensors, or have a value already.

    Raises:
        ValueError, LookupError, TypeError: with what is wrong.
    """
    if not isinstance(places, Mapping) or places.keys() != shared.keys():
        raise ValueError("it does not have the tensors that the others lack")
    for name, each in places.items():
        for *way, last in each:
            inside: Any = parts
            for key in way:
                inside = inside[key]
            if inside[last] is not None:
                raise ValueError(f"{name!r:.200} is in both")
        if not each:
            raise ValueError(f"{name!r:.200} belongs nowhere")


def _put(parts: Parts, place: Any, value: torch.Tensor) -> None:
    inside: Any = parts
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value


def _target(shared: SharedTensor, like: Any) -> _Target:
    """Memory for what this rank needs of a tensor."""
    dtype = getattr(torch, shared.dtype)
    if like is None or not hasattr(like, "full_tensor") or tuple(like.shape) != shared.shape:
        own = torch.empty(shared.shape, dtype=dtype)
        return _Target(own, (0,) * own.dim(), own)
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    own = torch.empty(shape, dtype=dtype, device=like.to_local().device)
    result = DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return _Target(own, tuple(offset), result)


def _read_piece(checkpoint: Checkpoint, file: BinaryIO, shared: SharedTensor, piece: Piece, target: _Target) -> None:
    """Copy what the target needs of this piece.

    Raises:
        CheckpointError: the bytes are no such tensor.
    """
    file.seek(piece.begin)
    path = checkpoint.path / piece.file
    value = load_plain(io.BytesIO(file.read(piece.length)), piece.length, path)
    expected = torch.Tensor, torch.strided, piece.shape, target.own.dtype
    if (type(value), *(getattr(value, name, None) for name in ("layout", "shape", "dtype"))) != expected:
        raise CheckpointError(
            f"{path} does not have a tensor of {piece.shape} and torch.{shared.dtype} where one belongs"
        )
    there = common(piece.offset, piece.shape, target.offset, target.own.shape)
    assert there is not None
    from_piece, to_own = there
    target.own[to_own].copy_(value[from_piece])
