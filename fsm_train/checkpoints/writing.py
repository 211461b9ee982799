"""Writing the files of one checkpoint into a folder of its own, flushed to disk and hashed meanwhile.

Rule of this file: whatever goes wrong is raised as what it is. torch.save hides an error of the disk, and Ctrl-C,
behind a RuntimeError of its archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, BinaryIO, cast

import attrs
import torch
from torch.serialization import get_crc32_options, set_crc32_options

from .manifest import FORMAT, MANIFEST, STATE, TENSORS, SavePoint, format_of

Parts = dict[str, Any]
"""What is saved beside the state, by part: tensors and plain values, in nested containers."""

NEW_MANIFEST = "manifest.new"  # until it takes the place of the one that says the folder is unfinished

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
        failure: what writing raised.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.announced = 0
        self.ends: SimpleQueue[int | None] = SimpleQueue()
        self.failure: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
            self.size += len(data)
            if self.size - self.announced >= _PIECE:
                self.announce()
        except BaseException as error:
            self.failure = error
            raise
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


def write_files(
    unfinished: Path,
    number: int,
    state: bytes,
    parts: Parts,
    save_point: SavePoint,
    write_others: Iterable[Callable[[Path], Mapping[str, tuple[int, str]]]],
    begun: Callable[[Path], object] = lambda unfinished: None,
) -> None:
    """Write the files of a checkpoint into this empty folder, the manifest last, and flush them to disk.

    Args:
        unfinished: the folder.
        number: of the checkpoint, for the manifest.
        state: the content of `state.json`.
        parts: the content of `tensors.pt`.
        save_point: for the manifest.
        write_others: each writes files of its own into a folder; by name, the size and sha256 of each. The last one may
            wait for those of other processes.
        begun: called when the folder can be told from those of others.

    Raises:
        OSError: the disk refuses.
        RuntimeError: a device or a thread refuses.
    """
    (unfinished / MANIFEST).write_bytes(_sealed({"format": FORMAT, "unfinished": True}))  # says that this is ours
    begun(unfinished)
    files: dict[str, tuple[int, str]] = {}
    write_bytes(unfinished / STATE, state, files)
    write_tensors(unfinished / TENSORS, parts, files)
    for write in write_others:
        files.update(write(unfinished))
    body = {"format": format_of(files), "number": number, "place": attrs.asdict(save_point), "files": files}
    write_bytes(unfinished / NEW_MANIFEST, _sealed(body), {})
    (unfinished / NEW_MANIFEST).rename(unfinished / MANIFEST)
    flush_folder(unfinished)


def write_tensors(path: Path, value: object, files: dict[str, tuple[int, str]]) -> None:
    """Write tensors and plain values to a new file, flushed to disk; its size and sha256 are added to `files`.

    Raises:
        OSError: the disk refuses.
        RuntimeError: a device or a thread refuses.
    """
    write_saved(path, [value], files)


def write_saved(path: Path, values: Iterable[object], files: dict[str, tuple[int, str]]) -> list[tuple[int, int]]:
    """Write what torch.save makes of each value to a new file, one after the other. As `write_tensors`.

    Returns:
        Where each begins in the file, and how long it is, in bytes.
    """
    ranges = []
    with _write_hashed(path, files) as file, _without_crc():
        for value in values:
            begin = file.size
            try:
                torch.save(value, cast("IO[bytes]", file))
            except BaseException as error:
                raise (file.failure or _interruption_behind(error) or error) from None
            ranges.append((begin, file.size - begin))
    return ranges


def write_bytes(path: Path, content: bytes, files: dict[str, tuple[int, str]]) -> None:
    """Write these bytes to a new file. As `write_tensors`.

    Raises:
        OSError: the disk refuses.
    """
    with _write_hashed(path, files) as file:
        file.write(content)


def _sealed(body: object) -> bytes:
    """The content of a manifest: its own sha256 in the first line, then JSON."""
    text = json.dumps(body, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def _interruption_behind(error: BaseException) -> BaseException | None:
    """The KeyboardInterrupt, or the like, while which this was raised; None if there is none."""
    behind: BaseException | None = error
    while behind is not None and isinstance(behind, Exception):
        behind = behind.__cause__ or behind.__context__
    return behind


@contextlib.contextmanager
def _write_hashed(path: Path, files: dict[str, tuple[int, str]]) -> Iterator[_HashingFile]:
    """A new file, flushed to disk at the end; its size and sha256 are added to `files`."""
    with path.open("w+b") as raw, ThreadPoolExecutor(1) as thread:
        hashing = _HashingFile(raw)
        try:
            sha256 = thread.submit(hashing.hash)  # Ctrl-C may come here too, and the thread has to end
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


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
