"""The history in a checkpoint: in files of its own, which the next checkpoints link to. Torch-free.

Rules of this file: a checkpoint is complete in itself, and two that may be all there is to resume from share no bytes:
one is linked to another only if a third one stays that is newer. What cannot be linked is written.

An epoch is a line of JSON. How many epochs are in which file depends on their number alone: 256, and eight times as
many in turn, so that some ten files hold any history, and an epoch is written a few times in a training.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import attrs
import orjson

from ..core.errors import CheckpointError
from ..core.history import History
from ..core.values import Metrics
from ..encoding import CannotDecodeError, decode, encode

_Digest = tuple[int, str]  # size and sha256, as in a manifest
_Mark = tuple[int, int, int, int]  # device, inode, size, and nanoseconds of the last change

Span = tuple[int, int]
"""Some epochs of a history: from the first, counted from 0, up to the second, which is not among them."""

_EPOCHS = 256  # in the smallest file; a history that is shorter is in state.json alone
_GROWTH = 8  # how many files are put together into one
_LARGEST = _EPOCHS * _GROWTH**2  # epochs of a file: some megabytes
_LONGEST_LINE = 2**24  # bytes, of one epoch
_NAME = re.compile(r"history-(\d{9,15})-(\d{9,15})\.jsonl")
_REMEMBERED = 8  # checkpoints of which the files are known


def epochs_in_files(epochs: int) -> int:
    """How many of the epochs of a history are in files; the others are in state.json.

    >>> epochs_in_files(255), epochs_in_files(256), epochs_in_files(1000)
    (0, 256, 768)
    """
    return epochs - epochs % _EPOCHS


def spans(epochs: int) -> Iterator[Span]:
    """Which epochs are in one file, in order, the largest files first.

    >>> list(spans(2_600))
    [(0, 2048), (2048, 2304), (2304, 2560)]
    """
    at, size = 0, _LARGEST
    while size >= _EPOCHS:
        while at + size <= epochs:
            yield at, at + size
            at += size
        size //= _GROWTH


def name_of(span: Span) -> str:
    """The name of the file with these epochs."""
    return f"history-{span[0]:09d}-{span[1]:09d}.jsonl"


def is_history_file(name: str) -> bool:
    """Whether a file of this name has a part of a history."""
    return _NAME.fullmatch(name) is not None


_FROZEN = re.compile(r"frozen-[0-9a-f]{32}\.pt")


def is_frozen_file(name: str) -> bool:
    """Whether a file of this name has tensors that do not change."""
    return _FROZEN.fullmatch(name) is not None


def is_shared_file(name: str) -> bool:
    """Whether checkpoints may share a file of this name."""
    return is_history_file(name) or is_frozen_file(name)


def content_of(history: Iterable[Mapping[str, float]]) -> bytes:
    """The content of a file with these epochs."""
    return b"".join(orjson.dumps(encode(dict(metrics))) + b"\n" for metrics in history)


def read_history(
    names: Iterable[str], opened: Callable[[str], AbstractContextManager[BinaryIO]]
) -> History[Mapping[str, float]]:
    """The part of a history that is in files.

    Args:
        names: of the files of a checkpoint, those of a history among them.
        opened: opens the file of a name, and verifies it.

    Raises:
        CheckpointError: a file is missing, or holds something else; or as `opened`.
    """
    epochs: list[Mapping[str, float]] = []
    for name in sorted(filter(is_history_file, names)):
        start, end = map(int, name.removesuffix(".jsonl").split("-")[1:])
        if start != len(epochs) or end <= start:
            raise CheckpointError(f"{name} is not the part of the history that comes after {len(epochs)} epochs")
        with opened(name) as file:
            try:
                epochs.extend(_epochs(file, end - start))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise CheckpointError(f"{name} is damaged: {type(error).__name__}: {error}") from error
    return History(epochs)


def _epochs(file: BinaryIO, count: int) -> Iterator[Mapping[str, float]]:
    for _ in range(count):
        metrics = decode(orjson.loads(file.readline(_LONGEST_LINE)))
        if not isinstance(metrics, dict):
            raise CannotDecodeError(f"{metrics!r:.40} is no epoch")
        yield Metrics(metrics)
    if file.read(1):
        raise CannotDecodeError(f"it has more than {count} epochs")


@attrs.frozen
class _Saved:
    """What is known of a checkpoint that was written.

    Attributes:
        path: where it is.
        line: 0 or 1; those of one line share files.
        files: by name, what a file was when it was written, and what is in it.
    """

    path: Path
    line: int
    files: Mapping[str, tuple[_Mark, _Digest]]


class TwoLines:
    """The checkpoints that were written into a folder, in two lines: those of one line may share files.

    It knows what it wrote itself: the first two checkpoints share nothing.
    """

    def __init__(self) -> None:
        self._saved: list[_Saved] = []  # the newest last
        self._beside: list[_Saved] = []  # those of them that stay beside the one that is being written
        self._now: _Saved | None = None  # which is that one

    def begin(self, path: Path, leaving: Container[Path]) -> _Saved | None:
        """Begin a checkpoint; the newest one whose files it may share.

        Args:
            path: where it will be.
            leaving: the checkpoints that are replaced or removed once this one is complete.
        """
        self._beside = [saved for saved in self._saved if saved.path != path and saved.path not in leaving]
        line, source = self._line()
        self._now = _Saved(path, line, {})
        return source

    def add(self, files: Mapping[str, tuple[_Mark, _Digest]]) -> None:
        """Note the files of the checkpoint that was begun last."""
        assert self._now is not None
        self._now = attrs.evolve(self._now, files=files)

    def complete(self) -> None:
        """The checkpoint that was begun last is complete, and where it was to be."""
        assert self._now is not None
        self._saved = [*self._beside, self._now][-_REMEMBERED:]

    def _line(self) -> tuple[int, _Saved | None]:
        """The line of the checkpoint that is being written, and the newest one of it.

        It is not the line of the newest checkpoint that stays beside it: one damaged file must not cost both.
        """
        if self._beside:
            line = 1 - self._beside[-1].line
            return line, next((saved for saved in reversed(self._saved) if saved.line == line), None)
        return (self._saved[-1].line, self._saved[-1]) if self._saved else (0, None)


class HistoryFiles(TwoLines):
    """Writes the files of a history into one checkpoint after the other, in a folder of checkpoints.

    The first two checkpoints have the history written, later ones have what was added.
    """

    def __init__(self) -> None:
        super().__init__()
        self._history: History[Mapping[str, float]] = History()  # that was written last
        self._digests: dict[str, _Digest] = {}  # by name, of the files of that

    def write(
        self, unfinished: Path, history: History[Mapping[str, float]], path: Path, leaving: Container[Path] = ()
    ) -> dict[str, _Digest]:
        """Write the files of a checkpoint, or link them; by name, the size and the sha256 of each.

        Args:
            unfinished: the folder that they are written into.
            history: of the training.
            path: where that folder will be.
            leaving: the checkpoints that are replaced or removed once this one is complete.

        Raises:
            OSError: the disk refuses.
        """
        known = self._digests if history.continues(self._history) else {}
        source = self.begin(path, leaving)
        files: dict[str, tuple[_Mark, _Digest]] = {}
        for start, end in spans(len(history)):
            name = name_of((start, end))
            if name not in known or not linked(source, name, known[name], unfinished / name):
                content = content_of(history[start:end])
                _write(unfinished / name, content)
                known[name] = len(content), hashlib.sha256(content).hexdigest()
            files[name] = mark_of(unfinished / name), known[name]
        self._history, self._digests = history, {name: digest for name, (_, digest) in files.items()}
        self.add(files)
        return dict(self._digests)


def linked(source: _Saved | None, name: str, digest: _Digest, there: Path) -> bool:
    """Whether the other checkpoint has this file, as it was written, and it is now at this path too."""
    if source is None or name not in source.files:
        return False
    mark, its_digest = source.files[name]
    if its_digest != digest:
        return False
    with contextlib.suppress(OSError):
        os.link(source.path / name, there)
        if mark_of(there) == mark:
            return True
        there.unlink()
    return False


def mark_of(path: Path) -> _Mark:
    stat = path.lstat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _write(path: Path, content: bytes) -> None:
    """Write a new file, and flush it to disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
