"""What one call of run saves: the folders that it holds, what became of each save, and what is to be said of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.facts import UNDER_WAY, UNSAVED
from ..core.phase import Phase
from ..worlds.rows import Topic
from .beside import Beside
from .folder import Folder
from .peers import Peers

_WAITED_FOR_AT = frozenset({Phase.VALID_END, Phase.EPOCH_END, Phase.TRAIN_END, Phase.SUSPEND, Phase.TEARDOWN})
_HERE = Path()
_NOTES = 20  # the most that are kept of one call of run: a disk may stay full for long


class Saves:
    """The folders that a call of run writes checkpoints to, and the outcomes.

    Attributes:
        unsaved: the savers (`SaveCheckpoint.by`) of which the checkpoint that they asked for last failed.
        notes: what could not be written, in words.
        in_run: whether a call of run is under way, which waits at its end for what is written beside it.
    """

    def __init__(self) -> None:
        self.unsaved: set[str] = set()
        self.notes: list[str] = []
        self._beside: dict[tuple[str, str], tuple[Beside, Callable[[str], None]]] = {}  # by saver and folder
        self._unsaid = 0  # how many more failed
        self.in_run = self._open = False
        self._folders: dict[str, Folder] = {}  # by their real paths
        self._by_path: dict[str, str] = {}  # the real paths of these
        self._begun_in = _HERE  # the folder that relative paths begin in, wherever the program goes meanwhile

    @contextmanager
    def of(self, folders: Iterable[str]) -> Iterator[None]:
        """Hold these folders, and those that are written to meanwhile, until this context ends.

        Raises:
            CheckpointError: one cannot be written to, or another run writes to it.
        """
        self._open = self.in_run = True
        with suppress(OSError):  # the present folder may have been removed
            self._begun_in = Path.cwd()
        try:
            for path in sorted(folders):
                self._held(Path(path))
            yield
        finally:
            try:
                self.settle()
            finally:
                self._close()

    def _leave(self) -> None:
        self.in_run = False
        self.settle()

    def _close(self) -> None:
        self._open = self.in_run = False
        with ExitStack() as all_of_them:  # whatever comes while one is closed
            for folder in self._folders.values():
                all_of_them.callback(folder.close)
            self._folders.clear()
            self._by_path.clear()

    @contextmanager
    def of_all(self, folders: Set[str], peers: Peers) -> Iterator[None]:
        """As `of`, where rank 0 holds the folders for all ranks.

        Raises:
            CheckpointError: on all ranks, if one cannot be written to, or another run writes to it.
        """
        with ExitStack() as held:
            held.callback(self._leave)
            if folders and peers.rank:
                if trouble := peers.tell(Topic.RESERVE, None)[0]:
                    raise CheckpointError(trouble)
            elif folders:
                try:
                    held.enter_context(self.of(folders))
                except CheckpointError as error:
                    peers.tell(Topic.RESERVE, str(error))
                    raise
                peers.tell(Topic.RESERVE, None)
            self.in_run = True
            yield

    def begin(self, by: str, folder: str, write: Callable[[], str], end: Callable[[str], None]) -> None:
        """Have a checkpoint written beside the training.

        Args:
            by, folder: as in `SaveCheckpoint`.
            write: as in `Beside`.
            end: called in the main thread with what `write` gave.
        """
        self._beside[by, folder] = Beside(write), end

    def settle(self, by: str | None = None, folder: str | None = None, *, wait: bool = True) -> None:
        """Wait for what is written beside the training: all of it, or that of this saver and what is in this folder.

        Args:
            by, folder: as in `SaveCheckpoint`.
            wait: False for what is on disk already, or failed.
        """
        everything = by is None and folder is None
        for (of, to), (written, end) in list(self._beside.items()):
            if (everything or of == by or to == folder) and (wait or not written.under_way):
                trouble = written.wait()
                del self._beside[of, to]
                end(trouble)

    def facts(self, names: Set[str], phase: Phase) -> dict[str, float]:
        """Those of these facts that say of a saver that its last checkpoint failed, or is under way."""
        found: dict[str, float] = {}
        for by in [by for by in self.unsaved if f"{UNSAVED}{by}" in names]:
            self.settle(by, wait=phase in _WAITED_FOR_AT)
            if by in self.unsaved:
                found[f"{UNSAVED}{by}"] = UNDER_WAY if any(by == of for of, _ in self._beside) else 1.0
        return found

    @contextmanager
    def folder(self, path: Path) -> Iterator[Folder]:
        """The folder to write to.

        Raises:
            CheckpointError: it cannot be written to, or another run writes to it.
        """
        if self._open:
            yield self._held(path)
            return
        folder = Folder(path)  # no call of run is under way
        try:
            yield folder
        finally:
            folder.close()

    def failed(self, by: str, sentence: str) -> None:
        """Note that a save of this saver failed."""
        self.unsaved.add(by)
        if len(self.notes) < _NOTES:
            self.notes.append(sentence)
        else:
            self._unsaid += 1
            self.notes[_NOTES:] = [f"{self._unsaid} further checkpoints could not be written"]

    def _held(self, path: Path) -> Folder:
        key = str(self._begun_in / path)
        if key not in self._by_path:
            self._by_path[key] = os.path.realpath(key)  # once: it may be a link, and removed meanwhile
        real = self._by_path[key]
        if real not in self._folders:
            self._folders[real] = Folder(Path(key))
        return self._folders[real]
