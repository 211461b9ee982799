"""Checkpoints as files: written so that a crash at any moment leaves a good one, and never trusted unread.

A checkpoint is a folder with `state.json` (the control state), `tensors.pt` (everything else; loaded
with weights_only=True and nothing allow-listed) and `manifest`, written last: a sha256 of itself, and
size and sha256 of the others, since torch.load takes a flipped bit without a word. It is made under
a temporary name, flushed to disk, renamed, and the folder around it flushed too. What has no valid
manifest is no checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import uuid
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import attrs
import torch

from ..core.errors import FsmTrainError

FORMAT = 1
STATE, TENSORS, MANIFEST = "state.json", "tensors.pt", "manifest"
LARGEST_JSON = 256 * 2**20  # bytes; a state is some kilobytes, its history some megabytes at most
_TEMPORARY, _REPLACED = ".writing-", ".replaced-"


class CheckpointError(FsmTrainError):
    """A checkpoint is damaged, missing, or not one."""


class NoCheckpointError(CheckpointError):
    """There is none yet: a training is to be started, and not gone on with."""


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


class _Hashing(io.RawIOBase):
    """A file that is hashed while it is written, so that it need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.beside = ThreadPoolExecutor(1)
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(data) < 2**16:
            self.sha256.update(data)
            self.file.write(data)
        else:  # both at once: neither holds the interpreter's lock
            hashed = self.beside.submit(self.sha256.update, data)
            self.file.write(data)
            hashed.result()
        self.size += len(data)
        return len(data)


def write(folder: Path, name: str, state: bytes, parts: dict[str, Any], place: Place) -> None:
    """Write a checkpoint of this name into the folder, and then drop those that are not needed any more.

    The folder is made if it is not there; a checkpoint of the same name is replaced. What a save or a
    drop that was cut short has left is put in order first.

    Raises:
        OSError: the disk is full, the folder cannot be written to. What was there before is untouched.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"a checkpoint cannot be called {name!r}: it is the name of a folder")
    folder.mkdir(parents=True, exist_ok=True)
    there = tidy(folder)
    number = 1 + max((checkpoint.number for checkpoint in there), default=0)
    unfinished = folder / f"{_TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir()
    try:
        files: dict[str, tuple[int, str]] = {}
        with _written(unfinished / STATE, files) as file:
            file.write(state)
        with _written(unfinished / TENSORS, files) as file:
            torch.save(parts, cast("IO[bytes]", file))
        body = {"format": FORMAT, "number": number, "place": attrs.asdict(place), "files": files}
        text = json.dumps(body, sort_keys=True).encode()
        with _written(unfinished / MANIFEST, {}) as file:
            file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        _flush_folder(unfinished)
        _put_in_place(unfinished, folder / name)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    tidy(folder)


@contextlib.contextmanager
def _written(path: Path, files: dict[str, tuple[int, str]]) -> Iterator[_Hashing]:
    """A new file, flushed to disk at the end, and noted with its size and hash."""
    with path.open("wb") as raw:
        hashing = _Hashing(raw)
        with hashing.beside:
            yield hashing
        raw.flush()
        os.fsync(raw.fileno())
    files[path.name] = hashing.size, hashing.sha256.hexdigest()


def _put_in_place(unfinished: Path, path: Path) -> None:
    """Rename to the final name. One that is there goes aside first, where `find` would still see it."""
    if path.exists():
        path.rename(path.with_name(f"{_REPLACED}{path.name}-{uuid.uuid4().hex[:8]}"))
    unfinished.rename(path)
    _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tidy(folder: Path) -> list[Checkpoint]:
    """Put in order what was cut short: unfinished folders, replaced ones, those to be dropped. The rest is returned."""
    for path in folder.iterdir():
        if path.name.startswith(_REPLACED):
            replaced = path.with_name(path.name.removeprefix(_REPLACED).rpartition("-")[0])
            with contextlib.suppress(OSError):
                _remove(path) if replaced.exists() else path.rename(replaced)
        elif path.name.startswith(_TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)
    there = find(folder)
    superseded = {name: other.number for other in reversed(there) for name in other.place.drop}
    for checkpoint in there:
        # One of that name may have been written again since.
        if checkpoint.number < superseded.get(checkpoint.path.name, 0):
            _remove(checkpoint.path)
    return there


def _remove(path: Path) -> None:
    """Remove a checkpoint: renamed first, so that half of one is never taken for a whole."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path.rename(path.with_name(f"{_TEMPORARY}{path.name}")), ignore_errors=True)


def find(folder: Path) -> list[Checkpoint]:
    """The checkpoints in a folder, the newest first; whether their files are good is not looked at."""
    found = []
    for path in folder.iterdir():
        if looks_like_one(path):
            with contextlib.suppress(CheckpointError):
                found.append(manifest_of(path))
    return sorted(found, key=lambda c: (c.number, c.place.written), reverse=True)


def looks_like_one(path: Path) -> bool:
    """Whether this is a folder that a checkpoint was written into, and was not left unfinished."""
    return not path.name.startswith(_TEMPORARY) and any((path / name).exists() for name in (STATE, TENSORS, MANIFEST))


def manifest_of(path: Path) -> Checkpoint:
    """The checkpoint in this folder, by its manifest.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    manifest = path / MANIFEST
    try:
        if not manifest.is_file() or manifest.stat().st_size > 2**20:
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
        files = {name: (int(size), str(sha256)) for name, (size, sha256) in body["files"].items()}
        place = Place(**{**body["place"], "drop": tuple(body["place"]["drop"])})
        checkpoint = Checkpoint(path, int(body["number"]), place, files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest} is not a manifest: {type(error).__name__}: {error}") from error
    if files.keys() != {STATE, TENSORS}:
        raise CheckpointError(f"{manifest} names the files {sorted(files)}, and not {STATE} and {TENSORS}")
    return checkpoint


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


def read(checkpoint: Checkpoint) -> tuple[bytes, dict[str, Any]]:
    """The control state and the tensors of a checkpoint, verified.

    Raises:
        CheckpointError: a file is damaged, or holds something other than tensors and plain values.
    """
    verify(checkpoint)
    if checkpoint.files[STATE][0] > LARGEST_JSON:
        raise CheckpointError(f"{checkpoint.path / STATE} is too large for a state: {checkpoint.files[STATE][0]} bytes")
    path = checkpoint.path / TENSORS
    try:
        _check_archive(path)
        parts = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # there is no end to what a file that was made with intent can raise
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} was refused: it holds something other than tensors and plain values ({why:.200})"
        ) from error
    if not isinstance(parts, dict) or not {"modules", "optimizer", "generators"} <= parts.keys():
        raise CheckpointError(f"{path} holds a {type(parts).__name__}, and not the parts of a training")
    return (checkpoint.path / STATE).read_bytes(), parts


def _check_archive(path: Path) -> None:
    """Refuse an archive that torch.save does not write: its records lie as they are, side by side.

    Raises:
        ValueError: something is compressed, and may be much larger than it looks, or lies elsewhere.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or ".." in entry.filename or entry.filename[0] in "/\\":
                raise ValueError(f"the archive has a strange entry, {entry.filename!r:.60}")


_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_TENSORS = (torch.Tensor, torch.nn.Parameter)


def unsafe(value: Any, path: str = "") -> str | None:
    """Where in a nested value something is that weights_only=True would refuse to load, if anywhere."""
    kind = type(value)
    if kind in _PLAIN or (kind in _TENSORS and not vars(value)):
        return None
    if kind in (dict, OrderedDict, Counter):
        keys = [(f"a key in {path or 'it'}", key) for key in value]
        parts = keys + [(f"{path}.{key}" if path else str(key), part) for key, part in value.items()]
    elif kind in (list, tuple, set):
        parts = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
    else:
        return f"{path} is a {kind.__module__}.{kind.__qualname__}{' with attributes' if kind in _TENSORS else ''}"
    return next(filter(None, (unsafe(part, where) for where, part in parts)), None)
