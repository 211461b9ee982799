"""Tensors that ranks share out, in the files of a checkpoint: what they are called, and what is where. Torch-free.

Rule of this file: the files are those of torch's distributed checkpoints (DCP), so that DCP reads them too. Each rank
has one with its pieces, and `.metadata` says of each tensor which pieces make it up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

METADATA = ".metadata"
_PIECES = re.compile(r"__(?:0|[1-9]\d{0,5})_0\.distcp")

Place = tuple[Any, ...]
"""The keys that lead to a tensor in the parts of a training, such as ("modules", "model", "values", "0.bias")."""


def name_of_pieces(rank: int) -> str:
    """The name of the file with the pieces of this rank, from 0."""
    return f"__{rank}_0.distcp"


def is_shard_file(name: str) -> bool:
    """Whether a file of this name has pieces of shared tensors, or says what they are."""
    return name == METADATA or _PIECES.fullmatch(name) is not None


@attrs.frozen
class Piece:
    """A part of a tensor, as one rank has written it.

    Attributes:
        offset: where it begins in the tensor, in elements, by dimension.
        shape: of the piece.
        file: the name of the file that has it.
        begin, length: where it is there, in bytes: what torch.save wrote.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    begin: int
    length: int


@attrs.frozen
class SharedTensor:
    """A tensor that was saved in pieces.

    Attributes:
        dtype: its name in torch, such as "float32".
        shape: of the whole tensor.
        pieces: which do not overlap, and make up the whole one.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def is_whole(tensor: SharedTensor) -> bool:
    """Whether the pieces make up the tensor: each lies within it, they do not overlap, and nothing is missing.

    >>> halves = [Piece((start, 0), (2, 3), "__0_0.distcp", 0, 1000) for start in (0, 2)]
    >>> is_whole(SharedTensor("float32", (4, 3), (*halves,))), is_whole(SharedTensor("float32", (4, 3), (halves[0],)))
    (True, False)
    """
    pieces = [piece for piece in tensor.pieces if math.prod(piece.shape)]
    return (
        all(_is_within(piece, tensor.shape) for piece in pieces)
        and sum(math.prod(piece.shape) for piece in pieces) == math.prod(tensor.shape)
        and not _overlap(pieces)
    )


def _is_within(piece: Piece, shape: Sequence[int]) -> bool:
    return len(piece.offset) == len(piece.shape) == len(shape) and all(
        start >= 0 and start + length <= whole
        for start, length, whole in zip(piece.offset, piece.shape, shape, strict=True)
    )


def _overlap(pieces: Sequence[Piece]) -> bool:
    """Whether two of the pieces have an element in common; they are compared with those that begin before they end.

    That is along the dimension in which they begin at most places: ranks may share out columns as well as rows.
    """
    dimensions = range(len(pieces[0].offset)) if pieces else range(0)
    along = max(dimensions, key=lambda i: len({piece.offset[i] for piece in pieces}), default=None)
    ordered = pieces if along is None else sorted(pieces, key=lambda piece: piece.offset[along])
    for i, one in enumerate(ordered):
        for j in range(i + 1, len(ordered)):
            other = ordered[j]
            if along is not None and other.offset[along] >= one.offset[along] + one.shape[along]:
                break
            if common(one.offset, one.shape, other.offset, other.shape) is not None:
                return True
    return False


def common(
    offset: Sequence[int], shape: Sequence[int], other_offset: Sequence[int], other_shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What two parts of one tensor have in common, as slices of the one and of the other; None if it is nothing.

    >>> common((0, 0), (3, 2), (2, 0), (3, 2))
    ((slice(2, 3, None), slice(0, 2, None)), (slice(0, 1, None), slice(0, 2, None)))
    """
    begins = [*map(max, offset, other_offset)]
    ends = [min(a + b, c + d) for a, b, c, d in zip(offset, shape, other_offset, other_shape, strict=True)]
    if any(begin >= end for begin, end in zip(begins, ends, strict=True)):
        return None
    one, other = (
        tuple(slice(begin - start, end - start) for begin, end, start in zip(begins, ends, starts, strict=True))
        for starts in (offset, other_offset)
    )
    return one, other


def names_of(places: Iterable[Place]) -> dict[str, Place]:
    """A name for each place, by which DCP knows the tensor: its keys with dots between them.

    >>> names_of([("modules", "model", "values", "0.bias"), ("optimizer", "state", 0, "exp_avg")])
    {'modules.model.values.0.bias': ('modules', 'model', 'values', '0.bias'), \
'optimizer.state.0.exp_avg': ('optimizer', 'state', 0, 'exp_avg')}
    """
    named: dict[str, Place] = {}
    for place in places:
        name = ".".join(map(str, place))
        while name in named:  # two places, whose keys have dots in them
            name += "'"
        named[name] = place
    return named


def gathered(told: Iterable[Mapping[str, Sequence[Piece]]]) -> dict[str, tuple[Piece, ...]]:
    """The pieces that ranks have written, in their order, by the name of the tensor."""
    found: dict[str, list[Piece]] = {}
    for own in told:
        for name, pieces in own.items():
            found.setdefault(name, []).extend(pieces)
    return {name: (*pieces,) for name, pieces in found.items()}
