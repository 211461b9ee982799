"""Checkpoints as files: written so that a crash at any moment leaves a good one, and never trusted unread.

The tensors are loaded with weights_only=True and nothing allow-listed; the manifest has a sha256 of each
byte, since torch.load takes a flipped bit without a word. A checkpoint is made under a temporary name,
flushed to disk, renamed, and the folder around it flushed too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import threading
import uuid
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, BinaryIO, cast

import attrs
import torch
from torch.serialization import get_crc32_options, set_crc32_options

from ..core.errors import CheckpointError
from .manifest import FORMAT, MANIFEST, STATE, TEMPORARY, TENSORS, Checkpoint, Place, find, verify

LARGEST_JSON = 256 * 2**20  # bytes; a state is some kilobytes, its history some megabytes at most
_REPLACED = ".replaced-"
_PIECE = 2**18  # bytes that are hashed at once, while they are in the processor's cache


class _Hashing(io.RawIOBase):
    """A file that a second thread hashes, while it is written and then while it is flushed to disk.

    That thread reads what was written back, from memory still: the tensors that are written may be gone
    by then (those of a device are copied one by one), and to wait for it at each would double the time.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.announced = 0
        self.ends: SimpleQueue[int | None] = SimpleQueue()

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.size += len(data)
        if self.size - self.announced >= _PIECE:
            self.announce()
        return len(data)

    def announce(self) -> None:
        """Let all that was written until now be hashed."""
        self.file.flush()
        self.announced = self.size
        self.ends.put(self.size)

    def hash(self) -> str:
        """Hash up to each end that is announced, and to the last one."""
        sha256, at, piece = hashlib.sha256(), 0, memoryview(bytearray(_PIECE))
        for end in iter(self.ends.get, None):
            while at < end:
                read = os.preadv(self.file.fileno(), [piece[: end - at]], at)
                sha256.update(piece[:read])
                at += read
        return sha256.hexdigest()


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
    unfinished = folder / f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir()
    try:
        files: dict[str, tuple[int, str]] = {}
        with _written(unfinished / STATE, files) as file:
            file.write(state)
        with _written(unfinished / TENSORS, files) as file, _without_crc():
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
    with path.open("w+b") as raw, ThreadPoolExecutor(1) as beside:
        hashing = _Hashing(raw)
        sha256 = beside.submit(hashing.hash)
        try:
            yield hashing
            hashing.announce()
            os.fsync(raw.fileno())
        finally:
            hashing.ends.put(None)
    files[path.name] = hashing.size, sha256.result()


_CRC = threading.Lock()


@contextlib.contextmanager
def _without_crc() -> Iterator[None]:
    """Without the CRC that torch.save takes of each tensor, which doubles its time and which torch.load does not read.

    The setting is one for all threads: one at a time changes it and puts it back.
    """
    with _CRC:
        before = get_crc32_options()
        set_crc32_options(False)
        try:
            yield
        finally:
            set_crc32_options(before)


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
        elif path.name.startswith(TEMPORARY):
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
        shutil.rmtree(path.rename(path.with_name(f"{TEMPORARY}{path.name}")), ignore_errors=True)


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
