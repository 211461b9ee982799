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
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Iterator
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


@attrs.frozen
class Checkpoint:
    """A folder whose manifest could be read.

    Attributes:
        path: the folder.
        iteration: finished training batches when it was written.
        step: optimizer steps.
        written: seconds since 1970, to tell those of one iteration apart.
        files: by name, the size in bytes and the sha256 of each.
    """

    path: Path
    iteration: int
    step: int
    written: float
    files: dict[str, tuple[int, str]]


class _Hashing(io.RawIOBase):
    """A file that is hashed while it is written, so that it need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size += len(data)
        self.file.write(data)
        return len(data)


def write(
    folder: Path, name: str, state: bytes, parts: dict[str, Any], *, iteration: int, step: int, now: float
) -> None:
    """Write a checkpoint of this name into the folder, which is made if it is not there.

    One of the same name is replaced. Left-overs of saves that were cut short are swept away.

    Raises:
        OSError: the disk is full, the folder cannot be written to. What was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    unfinished = folder / f"{_TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir()
    try:
        files: dict[str, tuple[int, str]] = {}
        with _written(unfinished / STATE, files) as file:
            file.write(state)
        with _written(unfinished / TENSORS, files) as file:
            torch.save(parts, cast("IO[bytes]", file))
        body = {"format": FORMAT, "iteration": iteration, "step": step, "written": now, "files": files}
        text = json.dumps(body, sort_keys=True).encode()
        with _written(unfinished / MANIFEST, {}) as file:
            file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        _flush_folder(unfinished)
        _put_in_place(unfinished, folder / name)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sweep(folder)


@contextlib.contextmanager
def _written(path: Path, files: dict[str, tuple[int, str]]) -> Iterator[_Hashing]:
    """A new file, flushed to disk at the end, and noted with its size and hash."""
    with path.open("wb") as raw:
        hashing = _Hashing(raw)
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


def drop(folder: Path, name: str) -> None:
    """Remove a checkpoint: the manifest first, so that half of one is never taken for a whole."""
    path = folder / name
    with contextlib.suppress(OSError):
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what saves that were cut short have left: unfinished folders, and replaced ones no longer needed."""
    for path in folder.iterdir():
        if path.name.startswith(_TEMPORARY) or (path.name.startswith(_REPLACED) and _name_of_replaced(path).exists()):
            shutil.rmtree(path, ignore_errors=True)


def _name_of_replaced(path: Path) -> Path:
    return path.with_name(path.name.removeprefix(_REPLACED).rpartition("-")[0])


def find(folder: Path) -> list[Checkpoint]:
    """The checkpoints in a folder, the newest first; whether their files are good is not looked at."""
    found = []
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith(_TEMPORARY):
            with contextlib.suppress(CheckpointError):
                found.append(manifest_of(path))
    return sorted(found, key=lambda c: (c.iteration, c.step, c.written), reverse=True)


def manifest_of(path: Path) -> Checkpoint:
    """The checkpoint in this folder, by its manifest.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    manifest = path / MANIFEST
    try:
        if manifest.stat().st_size > 2**20:
            raise CheckpointError(f"{manifest} is too large for a manifest")
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
        checkpoint = Checkpoint(path, int(body["iteration"]), int(body["step"]), float(body["written"]), files)
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
        parts = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} was refused: it holds something other than tensors and plain values ({error!s:.200})"
        ) from error
    if not isinstance(parts, dict):
        raise CheckpointError(f"{path} holds a {type(parts).__name__}, and not the parts of a training")
    return (checkpoint.path / STATE).read_bytes(), parts


def unsafe(value: Any, path: str = "") -> str | None:
    """Where in a nested value something is that weights_only=True would refuse to load, if anywhere."""
    if value is None or type(value) in (bool, int, float, str, bytes, torch.Size) or isinstance(value, torch.Tensor):
        return None
    if isinstance(value, dict):
        parts = [(f"{path}.{key}" if path else str(key), part) for key, part in value.items()]
    elif type(value) in (list, tuple):
        parts = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
    else:
        return f"{path} is a {type(value).__module__}.{type(value).__qualname__}"
    return next(filter(None, (unsafe(part, where) for where, part in parts)), None)
