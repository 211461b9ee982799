"""Reading a checkpoint: every byte is verified before it is used, and none of it runs as code.

Rule of this file: what is verified is what is read, from one opening of the file, so that a training which drops or
replaces the checkpoint meanwhile cannot mix two of them. Whatever is wrong is a CheckpointError.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..core.errors import CheckpointError
from .frozen_files import put_frozen_into
from .history_files import is_frozen_file
from .manifest import STATE, TENSORS, Checkpoint, verified
from .rank_names import name_of_rank
from .state_json import LARGEST_JSON
from .writing import Parts

_EXPANDED = 2**28  # bytes


def read_files(checkpoint: Checkpoint) -> tuple[bytes, Parts]:
    """The control state and the tensors of a checkpoint, verified.

    Raises:
        CheckpointError: a file is damaged or gone, or holds something other than tensors and plain values.
    """
    path = checkpoint.path / TENSORS
    if checkpoint.files[STATE][0] > LARGEST_JSON:
        raise CheckpointError(f"{checkpoint.path / STATE} is too large for a state: {checkpoint.files[STATE][0]} bytes")
    with verified(checkpoint, STATE) as file:
        state = file.read()
    parts = _loaded(checkpoint, TENSORS)
    if not isinstance(parts, dict) or not {"modules", "optimizer", "generators"} <= parts.keys():
        raise CheckpointError(f"{path} holds a {type(parts).__name__}, and not the parts of a training")
    for name in filter(is_frozen_file, checkpoint.files):
        try:
            put_frozen_into(parts, _loaded(checkpoint, name))
        except CheckpointError:
            raise
        except Exception as error:  # of what is nested in another way
            raise CheckpointError(f"{checkpoint.path / name} does not hold what {path} lacks: {error}") from error
    return state, parts


def read_rank_file(checkpoint: Checkpoint, rank: int) -> Any:
    """What a rank, from 1, has in its file, verified.

    Raises:
        CheckpointError: the file is damaged or gone, or holds something other than tensors and plain values.
    """
    return _loaded(checkpoint, name_of_rank(rank))


def _loaded(checkpoint: Checkpoint, name: str) -> Any:
    """What torch.save wrote to this file.

    Raises:
        CheckpointError: it is damaged or gone, or holds something other than tensors and plain values.
    """
    with verified(checkpoint, name) as file:
        return load_plain(file, checkpoint.files[name][0], checkpoint.path / name)


def load_plain(file: BinaryIO, size: int, path: Path) -> Any:
    """What torch.save wrote, of which this many bytes are at the beginning of this file or buffer.

    Raises:
        CheckpointError: it is something other than tensors and plain values. The path is for the sentence.
    """
    try:
        _check_archive(file)
        file.seek(0)
        value = torch.load(file, weights_only=True, map_location="cpu")
        _check_tensors(value, size)
    except Exception as error:  # a manipulated file can raise anything
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} was refused: it holds something other than tensors and plain values ({why:.200})"
        ) from error
    return value


def _check_archive(file: BinaryIO) -> None:
    """Refuse an archive that torch.save does not write: it stores its records uncompressed, in the archive itself.

    Raises:
        ValueError: an entry is compressed, and may be far larger than the file, or its path leaves the archive.
    """
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or ".." in entry.filename or entry.filename[0] in "/\\":
                raise ValueError(f"the archive has a strange entry, {entry.filename!r:.60}")


def _check_tensors(inside: object, size: int) -> None:
    """Refuse tensors that stand for more bytes than the file has room for, or have no values at all.

    A buffer may be expanded from a few values, which a file keeps as they are; `_EXPANDED` is what it may stand for.

    Raises:
        ValueError: reading the values of such a tensor would take any amount of memory, or fail.
    """
    waiting = [inside]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.is_meta or value.numel() * value.element_size() > max(size, _EXPANDED):
                raise ValueError(f"the values of a tensor of {value.numel()} elements are not in it")
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
