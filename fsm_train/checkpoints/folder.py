"""A folder of checkpoints, while one run holds it: a crash at any moment leaves a good one.

Rules of this file: a checkpoint is made under a temporary name, flushed to disk and renamed, and the folder around it
is flushed too; older ones go only after that. Nothing is renamed or removed that was not written by this package, by
what is in it. What is there is read when the folder is taken, and a save looks at nothing but what it writes, replaces
and removes: it costs the same however many there are.
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
from .rank_names import is_rank_file
from .shards import is_shard_file
from .writing import NEW_MANIFEST, Parts, flush_folder, write_files
from .writing_together import ALONE, Lead

LOCK = ".lock"
NO_HISTORY: History[Mapping[str, float]] = History()
_REPLACED = ".replaced-"  # prefix of a folder's name while another one takes its place
_MARKED = re.compile(r"-[0-9a-f]{8}")  # at the end of a temporary name
_DIGEST = re.compile(rb"[0-9a-f]{64}\n")  # at the beginning of a manifest, a damaged one too
_CUT_SHORT = re.compile(rb"[0-9a-f]{0,64}\0*")  # what a crash leaves of one that is just written


def check_name(name: str) -> None:
    """Refuse a name that no checkpoint can have.

    Raises:
        ValueError: it is no plain file name.
    """
    if not is_name(name):
        raise ValueError(f"a checkpoint cannot be called {name!r}: it is the name of a folder")


def is_name(name: str) -> bool:
    """Whether a checkpoint can have this name: a plain file name that does not begin with a dot."""
    return bool(name) and not name.startswith(".") and Path(name).name == name and "\0" not in name


class Folder:
    """A folder of checkpoints that this process writes to.

    Args:
        path: made if it does not exist.

    Raises:
        CheckpointError: it cannot be made, read or written to, or another run writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0  # the highest number that there ever was
        self._unfinished: set[Path] = set()  # temporary folders of this run that could not be removed yet
        self._superseded: set[Path] = set()  # checkpoints that are still to be removed, after the next one is written
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
        try:
            self._read()
        except BaseException:
            self.close()
            raise
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
        self._hold()

    def write(
        self,
        name: str,
        state: bytes,
        parts: Parts,
        save_point: SavePoint,
        history: History[Mapping[str, float]] = NO_HISTORY,
        lead: Lead = ALONE,
    ) -> None:
        """Write a checkpoint of this name, and then remove those that it supersedes. One of the same name is replaced.

        Args:
            name: a plain file name.
            state: the content of `state.json`.
            parts: the content of `tensors.pt`.
            save_point: for the manifest.
            history: of the training.
            lead: has the other ranks of the training write their files.

        Raises:
            OSError, RuntimeError: the disk, a device or a thread refuses. The other checkpoints are untouched.
            CheckpointError: the folder was removed or replaced meanwhile, and cannot be made or locked again; or
                another rank could not write its file.
        """
        self._hold_again()
        self._put_right_all()
        path = self.path / name
        if (path.exists() or path.is_symlink()) and not is_ours(path):
            raise FileExistsError(f"{path} is there, and is not a checkpoint that may be replaced")
        unfinished = self.path / f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
        replaced = self.path / f"{_REPLACED}{name}-{uuid.uuid4().hex[:8]}"
        self._last += 1
        unfinished.mkdir()
        try:
            leaving = {self.path / other for other in (name, *save_point.drop)}
            write_history = partial(self._history.write, history=history, path=path, leaving=leaving)
            rest, write_frozen = self._frozen.take_from(parts, path, leaving)
            others = (write_history, write_frozen, lead.files)
            write_files(unfinished, self._last, state, rest, save_point, others, lead.begun)
            if path.exists():
                path.rename(replaced)  # a name under which it is still found until the new one has its place
            unfinished.rename(path)
            flush_folder(self.path)
        except BaseException as error:
            try:
                lead.failed(error)  # before anything is removed: another rank may still write there
            finally:
                self._undo(path, unfinished, replaced)
            raise
        self._history.complete()
        self._frozen.complete()
        superseded = (self._superseded | {self.path / other for other in save_point.drop if is_name(other)}) - {path}
        self._superseded = set()
        for other in (replaced, *superseded):
            self._remove(other)

    def _undo(self, path: Path, unfinished: Path, replaced: Path) -> None:
        """Remove a checkpoint that failed; what is still there is put right before the next save."""
        with contextlib.suppress(OSError):
            if not unfinished.exists():
                path.rename(unfinished)  # the disk may not have it
        with contextlib.suppress(OSError):
            if not path.exists():
                replaced.rename(path)
        with contextlib.suppress(OSError):
            _remove_files(unfinished)
        self._unfinished |= {unfinished, replaced}

    def _read(self) -> None:
        """Repair what an interrupted run left: unfinished, replaced and superseded folders. The highest number."""
        try:
            paths = [*self.path.iterdir()]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
        self._unfinished = {path for path in paths if _MARKED.fullmatch(path.name[-9:]) and _is_temporary(path)}
        self._put_right_all()
        complete = list_folder(self.path).checkpoints
        self._last = max((self._last, *(checkpoint.number for checkpoint in complete)))
        dropped_by = {name: other.number for other in reversed(complete) for name in other.save_point.drop}
        # A newer checkpoint may have the name of a superseded one.
        self._superseded = {c.path for c in complete if c.number < dropped_by.get(c.path.name, 0)}

    def _put_right_all(self) -> None:
        """Remove temporary folders; one that nothing has replaced gets its name back. What cannot be is tried again."""
        waiting, self._unfinished = self._unfinished, set()
        for path in waiting:
            try:
                replaced = path.with_name(path.name.removeprefix(_REPLACED)[:-9])
                if not path.name.startswith(_REPLACED):
                    _remove_files(path)
                elif replaced.exists():
                    self._remove(path)
                else:
                    path.rename(replaced)
            except FileNotFoundError:
                continue
            except OSError:
                self._unfinished.add(path)

    def _remove(self, path: Path) -> None:
        """Remove a checkpoint. It is renamed first, so that a half-removed one is never used."""
        if not is_ours(path):
            return
        try:
            temporary = path.rename(path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"))
        except OSError:
            self._superseded.add(path)  # for the next save
            return
        try:
            _remove_files(temporary)
        except OSError:
            self._unfinished.add(temporary)


def _is_temporary(path: Path) -> bool:
    """Whether this is a folder of ours that is unfinished or was replaced, by its name and by what is in it."""
    return path.name.startswith((TEMPORARY, _REPLACED)) and is_ours(path, new=path.name.startswith(TEMPORARY))


def is_ours(path: Path, *, new: bool = False) -> bool:
    """Whether this folder is a checkpoint, maybe a damaged one, with nothing else in it.

    Args:
        path: the folder.
        new: whether one that has no files yet counts, or not all of its manifest, as a crash may leave it.
    """
    try:
        there = set() if path.is_symlink() else {entry.name for entry in path.iterdir()}
        if not _only_ours(there, path):
            return False
        if all(map(_is_of_a_rank, there)):  # one rank may still have written when another removed what it had begun
            return new and not path.is_symlink()
        with (path / MANIFEST).open("rb") as manifest:
            begins = manifest.read(65)
        return _DIGEST.match(begins) is not None or (new and _CUT_SHORT.fullmatch(begins) is not None)
    except OSError:
        return False


def _only_ours(names: set[str], path: Path) -> bool:
    """Whether these are all names of files that this package has written into this folder."""
    try:
        return names <= {MANIFEST, *manifest_of(path).files}
    except CheckpointError:
        fixed = (MANIFEST, NEW_MANIFEST, STATE, TENSORS)
        return all(name in fixed or is_shared_file(name) or _is_of_a_rank(name) for name in names)


def _is_of_a_rank(name: str) -> bool:
    return is_rank_file(name) or is_shard_file(name)


def _remove_files(path: Path) -> None:
    """Remove a temporary folder of ours, unless somebody has put a file into it; the manifest goes last.

    Raises:
        OSError: the disk refuses.
    """
    there = {entry.name for entry in path.iterdir()}
    if _only_ours(there, path):
        for name in sorted(there, key=MANIFEST.__eq__):
            (path / name).unlink()
        path.rmdir()
