"""The tensors that ranks share out, as the files of a checkpoint have them: names and pieces, without torch."""

from __future__ import annotations

import math

import attrs
import pytest

from fsm_train.checkpoints import shards
from fsm_train.checkpoints.manifest import FORMAT, STATE, TENSORS, format_of
from fsm_train.checkpoints.rank_names import name_of_rank
from fsm_train.checkpoints.shards import (
    Piece,
    SharedTensor,
    common,
    gathered,
    is_shard_file,
    is_whole,
    name_of_pieces,
    names_of,
)


def piece(offset: tuple[int, ...], shape: tuple[int, ...], rank: int = 0) -> Piece:
    return Piece(offset, shape, name_of_pieces(rank), 0, 100)


QUARTERS = [piece((row, column), (2, 3)) for row in (0, 2) for column in (0, 3)]


@pytest.mark.parametrize(
    ("shape", "pieces", "whole"),
    [
        ((4, 6), QUARTERS, True),
        ((4, 6), QUARTERS[::-1], True),
        ((4, 6), QUARTERS[:3], False),
        ((4, 6), [*QUARTERS[:3], QUARTERS[0]], False),
        ((4, 6), [*QUARTERS[:3], piece((2, 2), (2, 3))], False),
        ((4, 6), [*QUARTERS[:3], piece((2, 4), (2, 3))], False),
        ((4, 6), [*QUARTERS[:3], piece((2,), (6,))], False),
        ((4, 6), [*QUARTERS, piece((4, 0), (0, 6))], True),
        ((4, 6), [*QUARTERS[:3], piece((-1, 0), (2, 3))], False),
        ((), [piece((), ())], True),
        ((), [], False),
        ((), [piece((), ()), piece((), ())], False),
        ((0, 3), [], True),
        ((0, 3), [piece((0, 0), (0, 3))], True),
    ],
)
def test_pieces_are_whole_where_nothing_is_missing_or_twice(
    shape: tuple[int, ...], pieces: list[Piece], whole: bool
) -> None:
    assert is_whole(SharedTensor("float32", shape, (*pieces,))) is whole


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_thousands_of_ranks_are_looked_at_once_each(dimension: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever dimension they share a tensor out; each piece is compared with none, or with the next."""
    compared = []
    monkeypatch.setattr(shards, "common", lambda *boxes: compared.append(boxes))
    shape = [4, 4, 4]
    shape[dimension] = 3000
    offsets = [tuple(start if i == dimension else 0 for i in range(3)) for start in range(3000)]
    whole = SharedTensor("float32", (*shape,), tuple(piece(each, _thin(shape, dimension)) for each in offsets))

    assert is_whole(whole)
    assert len(compared) < 3000


def _thin(shape: list[int], dimension: int) -> tuple[int, ...]:
    return tuple(1 if i == dimension else length for i, length in enumerate(shape))


def test_overlap_of_two_that_make_up_the_number_is_seen() -> None:
    """A single number can be there twice with another one missing, and the count is right."""
    tensor = SharedTensor("float32", (2, 2), (piece((0, 0), (2, 1)), piece((0, 0), (1, 2))))
    assert sum(math.prod(each.shape) for each in tensor.pieces) == 4
    assert not is_whole(tensor)
    assert is_whole(attrs.evolve(tensor, pieces=(piece((0, 0), (2, 1)), piece((0, 1), (2, 1)))))


def test_parts_of_one_tensor_have_nothing_in_common() -> None:
    assert common((0, 0), (2, 3), (0, 3), (2, 3)) is None
    assert common((), (), (), ()) == ((), ())


def test_pieces_of_ranks_are_put_together_by_name() -> None:
    first, second = piece((0,), (2,)), piece((2,), (1,), rank=1)
    assert gathered([{"a": [first], "b": []}, {"a": [second]}]) == {"a": (first, second), "b": ()}


def test_two_places_have_two_names() -> None:
    """Keys may have dots themselves."""
    assert names_of([("a.b", "c"), ("a", "b.c"), ("a", "b", "c")]) == {
        "a.b.c": ("a.b", "c"),
        "a.b.c'": ("a", "b.c"),
        "a.b.c''": ("a", "b", "c"),
    }


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1023_0.distcp"])
def test_files_of_shards_are_known_by_name(name: str) -> None:
    assert is_shard_file(name)


@pytest.mark.parametrize("name", ["metadata", "__01_0.distcp", "__1_1.distcp", "../__0_0.distcp", "__0_0.distcp\n"])
def test_other_files_are_not(name: str) -> None:
    assert not is_shard_file(name)


@pytest.mark.parametrize(
    ("further", "format_"),
    [((), 2), ((name_of_rank(1),), 5), ((shards.METADATA, name_of_pieces(0), name_of_rank(1)), FORMAT)],
)
def test_format_is_the_oldest_that_can_read_these_files(further: tuple[str, ...], format_: int) -> None:
    """So that an earlier version reads what it can."""
    assert format_of([STATE, TENSORS, *further]) == format_
