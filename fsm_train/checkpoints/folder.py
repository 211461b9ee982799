"""A folder of checkpoints, while one run holds it: a crash at any moment leaves a good one.

Rules of this file: a checkpoint is made under a temporary name, flushed to disk and renamed, and the folder around it
is flushed too; older ones go only after that. Nothing is renamed or removed that was not written by this package, by
what is in it. What is there is read once, so that a save costs the same however many there are.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.history import History
from ..locks import HeldError, Lock, take
from .frozen_files import FrozenFiles
from .history_files import HistoryFiles, is_shared_file
from .manifest import MANIFEST, STATE, TEMPORARY, TENSORS, SavePoint, list_folder, manifest_of
from .writing import NEW_MANIFEST, Parts, flush_folder, write_files

LOCK = ".lock"
NO_HISTORY: History[Mapping[str, float]] = History()
_REPLACED = ".replaced-"  # prefix of a folder's name while another one takes its place
_MARKED = re.compile(r"-[0-9a-f]{8}")  # at the end of a temporary name
_DIGEST = re.compile(rb"[0-9a-f]{64}\n")  # at the beginning of a manifest, a damaged one too


def check_name(name: str) -> None:
    """Refuse a name that no checkpoint can have.

    Raises:
        ValueError: it is no plain file name.
    """
    if not name or name.startswith(".") or Path(name).name != name or "\0" in name:
        raise ValueError(f"a checkpoint cannot be called {name!r}: it is the name of a folder")


class Folder:
    """A folder of checkpoints that this process writes to.

    Args:
        path: made if it does not exist.

    Raises:
        CheckpointError: it cannot be made or written to, or another run writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers: dict[str, int] | None = None  # by name, those of the complete checkpoints; None before a save
        self._last = 0  # the highest number that there ever was
        self._history = HistoryFiles()
        self._frozen = FrozenFiles()
        self._pid = os.getpid()
        self._lock: Lock | None = None
        self._hold()

    def close(self) -> None:
        """Let other runs write to it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _hold(self) -> None:
        self._is_held = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = take(self.path / LOCK)
        except HeldError as error:
            raise CheckpointError(
                f"{error} writes its checkpoints to {self.path}, and a folder takes those of one run at a time: let it "
                "end first, or give another folder"
            ) from None
        except OSError as error:
            raise CheckpointError(f"no checkpoint can be written to {self.path}: {error.strerror}") from error
        self._is_held = True

    def _hold_again(self) -> None:
        """Make and lock the folder again if it was removed or replaced meanwhile.

        Raises:
            CheckpointError: it cannot be made or written to, another run writes to it, or this process was forked.
        """
        if os.getpid() != self._pid:
            raise CheckpointError("this process was forked from the one that writes its checkpoints there")
        if self._is_held and (self.path.is_dir() if self._lock is None else self._lock.in_place):
            return
        self.close()
        self._numbers = None
        self._hold()

    def write(
        self,
        name: str,
        state: bytes,
        parts: Parts,
        save_point: SavePoint,
        history: History[Mapping[str, float]] = NO_HISTORY,
    ) -> None:
        """Write a checkpoint of this name, and then remove those that it supersedes. One of the same name is replaced.

        Args:
            name: a plain file name.
            state: the content of `state.json`.
            parts: the content of `tensors.pt`.
            save_point: for the manifest.
            history: of the training.

        Raises:
            OSError, RuntimeError: the disk, a device or a thread refuses. The other checkpoints are untouched.
            CheckpointError: the folder was removed or replaced meanwhile, and cannot be made or locked again.
        """
        self._hold_again()
        numbers = self._tidied() if self._numbers is None else self._numbers
        path = self.path / name
        if (path.exists() or path.is_symlink()) and not is_ours(path):
            raise FileExistsError(f"{path} is there, and is not a checkpoint that may be replaced")
        unfinished = self.path / f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
        replaced = self.path / f"{_REPLACED}{name}-{uuid.uuid4().hex[:8]}"
        unfinished.mkdir()
        try:
            leaving = {self.path / other for other in (name, *save_point.drop)}
            write_history = partial(self._history.write, history=history, path=path, leaving=leaving)
            rest, write_frozen = self._frozen.take_from(parts, path, leaving)
            write_files(unfinished, self._last + 1, state, rest, save_point, (write_history, write_frozen))
            if path.exists():
                path.rename(replaced)  # a name under which it is still found until the new one has its place
            unfinished.rename(path)
            flush_folder(self.path)
        except BaseException:
            self._numbers = None  # what is there is read again before the next save
            with contextlib.suppress(OSError):
                if not unfinished.exists():
                    path.rename(unfinished)  # the disk may not have it
            _remove_files(unfinished)
            with contextlib.suppress(OSError):
                if replaced.exists():
                    replaced.rename(path)
            raise
        self._history.complete()
        self._frozen.complete()
        self._last += 1
        numbers[name] = self._last
        for other in (replaced, *(self.path / other for other in save_point.drop if numbers.pop(other, None))):
            _remove(other)

    def _tidied(self) -> dict[str, int]:
        """Repair what an interrupted save left: unfinished, replaced and superseded folders. The rest, by number."""
        for path in self.path.iterdir():
            with contextlib.suppress(OSError):
                if path.name.startswith(_REPLACED) and _MARKED.fullmatch(path.name[-9:]) and is_ours(path):
                    replaced = path.with_name(path.name.removeprefix(_REPLACED)[:-9])
                    _remove(path) if replaced.exists() else path.rename(replaced)
                elif path.name.startswith(TEMPORARY) and _MARKED.fullmatch(path.name[-9:]) and is_ours(path, new=True):
                    _remove_files(path)
        complete = list_folder(self.path).checkpoints
        superseded = {name: other.number for other in reversed(complete) for name in other.save_point.drop}
        self._last = max((checkpoint.number for checkpoint in complete), default=0)
        self._numbers = {}
        for checkpoint in complete:
            # A newer checkpoint may have the name of a superseded one.
            if checkpoint.number < superseded.get(checkpoint.path.name, 0):
                _remove(checkpoint.path)
            else:
                self._numbers[checkpoint.path.name] = checkpoint.number
        return self._numbers


def is_ours(path: Path, *, new: bool = False) -> bool:
    """Whether this folder is a checkpoint, maybe a damaged one, with nothing else in it.

    Args:
        path: the folder.
        new: whether one that has no files yet counts.
    """
    try:
        there = set() if path.is_symlink() else {entry.name for entry in path.iterdir()}
        if not _only_ours(there, path):
            return False
        if not there:
            return new and not path.is_symlink()
        with (path / MANIFEST).open("rb") as manifest:
            return _DIGEST.match(manifest.read(65)) is not None
    except OSError:
        return False


def _only_ours(names: set[str], path: Path) -> bool:
    """Whether these are all names of files that this package has written into this folder."""
    try:
        return names <= {MANIFEST, *manifest_of(path).files}
    except CheckpointError:
        return all(name in (MANIFEST, NEW_MANIFEST, STATE, TENSORS) or is_shared_file(name) for name in names)


def _remove(path: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a half-removed one is never used."""
    with contextlib.suppress(OSError):
        if is_ours(path):
            _remove_files(path.rename(path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")))


def _remove_files(path: Path) -> None:
    """Remove a temporary folder of ours, unless somebody has put a file into it; the manifest goes last."""
    with contextlib.suppress(OSError):
        there = {entry.name for entry in path.iterdir()}
        if _only_ours(there, path):
            for name in sorted(there, key=MANIFEST.__eq__):
                (path / name).unlink()
            path.rmdir()
