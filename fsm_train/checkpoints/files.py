"""Checkpoints as files: a crash at any moment leaves a good one, and every byte is verified before it is used.

The tensors are loaded with weights_only=True and nothing allow-listed. The manifest has a sha256 of each
file, since torch.load accepts a flipped bit in silence. A checkpoint is made under a temporary name,
flushed to disk and renamed, and the folder around it is flushed too.
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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, BinaryIO, cast

import attrs
import torch
from torch.serialization import get_crc32_options, set_crc32_options

from ..core.errors import CheckpointError
from ..core.history import History
from .history_files import HistoryFiles
from .manifest import MANIFEST, STATE, TEMPORARY, TENSORS, Checkpoint, SavePoint, find, format_of, verify

LARGEST_JSON = 256 * 2**20  # bytes; a state is some kilobytes, its history some megabytes at most
Parts = dict[str, Any]
"""What is saved beside the state, by part: tensors and plain values, in nested containers."""

SavedHistory = tuple[History[Mapping[str, float]], HistoryFiles]

_REPLACED = ".replaced-"  # prefix of a folder's name while another one takes its place
_PIECE = 2**18  # bytes that are hashed at once: few enough to stay in the processor's cache


class _HashingFile(io.RawIOBase):
    """A file that a second thread hashes while it is written and flushed to disk.

    The thread reads the written bytes back, from the page cache: the tensors themselves may be freed by
    then, as those of a device are copied to memory one by one. Hashing each piece before writing the next
    would double the time.

    Attributes:
        file: the file itself.
        size: bytes that were written.
        announced: bytes that may be hashed.
        ends: the values of `announced`, for the thread; None is the last.
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
        """Let the thread hash everything that was written so far."""
        self.file.flush()
        self.announced = self.size
        self.ends.put(self.size)

    def hash(self) -> str:
        """The sha256, in hexadecimal; returns after the last end."""
        sha256, at, piece = hashlib.sha256(), 0, memoryview(bytearray(_PIECE))
        for end in iter(self.ends.get, None):
            while at < end:
                read = os.preadv(self.file.fileno(), [piece[: end - at]], at)
                sha256.update(piece[:read])
                at += read
        return sha256.hexdigest()


def write(
    folder: Path, name: str, state: bytes, parts: Parts, save_point: SavePoint, history: SavedHistory | None = None
) -> None:
    """Write a checkpoint of this name into the folder, and then remove those that it supersedes.

    The folder is made if it does not exist, and a checkpoint of the same name is replaced. Before that,
    `tidy` repairs what an interrupted save left.

    Args:
        folder: of all checkpoints of the training.
        name: of this one, a plain file name.
        state: the content of `state.json`.
        parts: the content of `tensors.pt`.
        save_point: for the manifest.
        history: of the training, and what writes its files.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Older checkpoints are untouched.
        ValueError: the name is no plain file name.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"a checkpoint cannot be called {name!r}: it is the name of a folder")
    folder.mkdir(parents=True, exist_ok=True)
    older = tidy(folder)
    number = 1 + max((checkpoint.number for checkpoint in older), default=0)
    unfinished = folder / f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir()
    try:
        files: dict[str, tuple[int, str]] = {}
        with _write_hashed(unfinished / STATE, files) as file:
            file.write(state)
        with _write_hashed(unfinished / TENSORS, files) as file, _without_crc():
            torch.save(parts, cast("IO[bytes]", file))
        if history is not None:
            leaving = {folder / other for other in (name, *save_point.drop)}
            files |= history[1].write(unfinished, history[0], folder / name, leaving)
        body = {"format": format_of(files), "number": number, "place": attrs.asdict(save_point), "files": files}
        text = json.dumps(body, sort_keys=True).encode()
        with _write_hashed(unfinished / MANIFEST, {}) as file:
            file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        _flush_folder(unfinished)
        _put_in_place(unfinished, folder / name)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if history is not None:
        history[1].complete()
    tidy(folder)


@contextlib.contextmanager
def _write_hashed(path: Path, files: dict[str, tuple[int, str]]) -> Iterator[_HashingFile]:
    """A new file, flushed to disk at the end; its size and sha256 are added to `files`."""
    with path.open("w+b") as raw, ThreadPoolExecutor(1) as thread:
        hashing = _HashingFile(raw)
        sha256 = thread.submit(hashing.hash)
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
    """Switch off the CRC that torch.save computes of each tensor: it doubles the time, and torch.load ignores it.

    The setting is global, so one thread at a time changes and restores it.
    """
    with _CRC:
        before = get_crc32_options()
        set_crc32_options(False)
        try:
            yield
        finally:
            set_crc32_options(before)


def _put_in_place(unfinished: Path, path: Path) -> None:
    """Rename to the final name. An existing checkpoint is renamed first, to a name that `find` still finds."""
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
    """Repair what an interrupted save left: unfinished, replaced and superseded folders. The complete ones."""
    for path in folder.iterdir():
        if path.name.startswith(_REPLACED):
            replaced = path.with_name(path.name.removeprefix(_REPLACED).rpartition("-")[0])
            with contextlib.suppress(OSError):
                _remove(path) if replaced.exists() else path.rename(replaced)
        elif path.name.startswith(TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)
    complete = find(folder)
    superseded = {name: other.number for other in reversed(complete) for name in other.save_point.drop}
    for checkpoint in complete:
        # A newer checkpoint may have the name of a superseded one.
        if checkpoint.number < superseded.get(checkpoint.path.name, 0):
            _remove(checkpoint.path)
    return complete


def _remove(path: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a half-removed one is never used."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path.rename(path.with_name(f"{TEMPORARY}{path.name}")), ignore_errors=True)


def read(checkpoint: Checkpoint) -> tuple[bytes, Parts]:
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
    except Exception as error:  # a manipulated file can raise anything
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} was refused: it holds something other than tensors and plain values ({why:.200})"
        ) from error
    if not isinstance(parts, dict) or not {"modules", "optimizer", "generators"} <= parts.keys():
        raise CheckpointError(f"{path} holds a {type(parts).__name__}, and not the parts of a training")
    return (checkpoint.path / STATE).read_bytes(), parts


def _check_archive(path: Path) -> None:
    """Refuse an archive that torch.save does not write: it stores its records uncompressed, in the archive itself.

    Raises:
        ValueError: an entry is compressed, and may be far larger than the file, or its path leaves the archive.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or ".." in entry.filename or entry.filename[0] in "/\\":
                raise ValueError(f"the archive has a strange entry, {entry.filename!r:.60}")


_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_TENSORS = (torch.Tensor, torch.nn.Parameter)


def find_unsafe(value: Any, path: str = "") -> str | None:
    """The path and type of the first part that weights_only=True would refuse to load; None if there is none."""
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
    return next(filter(None, (find_unsafe(part, where) for where, part in parts)), None)
