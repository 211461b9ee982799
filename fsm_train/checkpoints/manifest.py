"""The files of a checkpoint, and whether each byte of them is as it was written. Nothing here loads a tensor.

A checkpoint is a folder with `state.json` (the control state), `tensors.pt` (everything else) and
`manifest`, written last: a sha256 of itself, and size and sha256 of the others. What has no valid
manifest is no checkpoint, and what a manifest says is looked at before it is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from ..core.errors import CheckpointError

FORMAT = 1
STATE, TENSORS, MANIFEST = "state.json", "tensors.pt", "manifest"
TEMPORARY = ".writing-"  # how the name of a folder begins while it is not whole
_LARGEST = 2**20  # bytes of a manifest
_LATEST = 2.0**37  # seconds since 1970, in the year 6325: what is no time cannot be shown as one


@attrs.frozen
class Place:
    """Where in a training a checkpoint is.

    Attributes:
        iteration: finished training batches when it was written.
        step: optimizer steps.
        written: seconds since 1970.
        drop: the names of those that are not needed any more when this one is there.
    """

    iteration: int
    step: int
    written: float
    drop: tuple[str, ...] = ()


@attrs.frozen
class Checkpoint:
    """A folder whose manifest could be read.

    Attributes:
        path: the folder.
        number: each that is written into a folder has a higher one, whatever the clock says, and
            also when a training goes on from an older one or begins anew.
        place: where in the training it is.
        files: by name, the size in bytes and the sha256 of each.
    """

    path: Path
    number: int
    place: Place
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """So many bytes, without the manifest."""
        return sum(size for size, _ in self.files.values())


def find(folder: Path) -> list[Checkpoint]:
    """The checkpoints in a folder, the newest first; whether their files are good is not looked at."""
    return find_all(folder)[0]


def find_all(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The checkpoints in a folder, the newest first, and what is wrong with those of which the manifest is damaged."""
    found: list[Checkpoint] = []
    damaged: dict[Path, str] = {}
    for path in sorted(folder.iterdir()):
        if looks_like_one(path):
            good, bad = _one(path)
            found += good
            damaged |= bad
    return sorted(found, key=lambda c: (c.number, c.place.written), reverse=True), damaged


def looks_like_one(path: Path) -> bool:
    """Whether this is a folder that a checkpoint was written into, and was not left unfinished."""
    return not path.name.startswith(TEMPORARY) and any((path / name).exists() for name in (STATE, TENSORS, MANIFEST))


def manifest_of(path: Path) -> Checkpoint:
    """The checkpoint in this folder, by its manifest.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    manifest = path / MANIFEST
    try:
        if not manifest.is_file() or manifest.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} is no checkpoint: it has no manifest, or one that is too large")
        digest, _, text = manifest.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint: its manifest cannot be read ({error.strerror})") from error
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise CheckpointError(f"{manifest} is damaged: it does not match its own checksum")
    try:
        body = json.loads(text)
        if body["format"] > FORMAT:
            raise CheckpointError(f"{path} was written by a newer version (format {body['format']}): update fsm-train")
        files = {name: (_whole(size), str(sha256)) for name, (size, sha256) in body["files"].items()}
        checkpoint = Checkpoint(path, _whole(body["number"]), _place(body["place"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest} is not a manifest: {type(error).__name__}: {error}") from error
    if files.keys() != {STATE, TENSORS}:
        raise CheckpointError(f"{manifest} names the files {sorted(files)}, and not {STATE} and {TENSORS}")
    return checkpoint


def _place(said: Mapping[str, Any]) -> Place:
    written = said["written"]
    if type(written) not in (int, float) or not (math.isfinite(written) and abs(written) < _LATEST):
        raise ValueError(f"{written!r:.60} is no time")
    return Place(_whole(said["iteration"]), _whole(said["step"]), written, tuple(map(str, said["drop"])))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.60} is no whole number from 0")
    return value


def verify(checkpoint: Checkpoint) -> None:
    """Read every byte and compare.

    Raises:
        CheckpointError: with the name of the file that is damaged.
    """
    for name, (size, sha256) in checkpoint.files.items():
        path = checkpoint.path / name
        try:
            if path.is_symlink() or not path.is_file():
                raise CheckpointError(f"{path} is no file of its own")
            if path.stat().st_size != size:
                raise CheckpointError(f"{path} is damaged: it has {path.stat().st_size} bytes and not {size}")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise CheckpointError(f"{path} is damaged: it does not match its checksum")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


@attrs.frozen
class Verified:
    """What was found where a checkpoint is, or was.

    Attributes:
        path: the folder.
        checkpoint: what its manifest says, if that can be read.
        trouble: what is wrong with it; empty if each byte is as it was written.
    """

    path: Path
    checkpoint: Checkpoint | None
    trouble: str


def verified(chosen: Path) -> list[Verified]:
    """Each checkpoint in a folder, the newest first and those without a manifest last; or the one that this is.

    Raises:
        OSError: the folder cannot be read.
    """
    found, damaged = _one(chosen) if looks_like_one(chosen) else find_all(chosen)
    looked_at = [Verified(checkpoint.path, checkpoint, _trouble(checkpoint)) for checkpoint in found]
    return [*looked_at, *(Verified(path, None, trouble) for path, trouble in damaged.items())]


def _one(path: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    try:
        return [manifest_of(path)], {}
    except CheckpointError as error:
        return [], {path: str(error)}


def _trouble(checkpoint: Checkpoint) -> str:
    try:
        verify(checkpoint)
    except CheckpointError as error:
        return str(error)
    return ""
