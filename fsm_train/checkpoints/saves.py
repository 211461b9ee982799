"""What one call of run saves: the folders that it holds, what became of each save, and what is to be said of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..core.errors import CheckpointError
from ..worlds.rows import Topic
from .folder import Folder
from .peers import Peers

_NOTES = 20  # the most that are kept of one call of run: a disk may stay full for long


class Saves:
    """The folders that a call of run writes checkpoints to, and the outcomes.

    Attributes:
        unsaved: the savers (`SaveCheckpoint.by`) of which the checkpoint that they asked for last failed.
        notes: what could not be written, in words.
    """

    def __init__(self) -> None:
        self.unsaved: set[str] = set()
        self.notes: list[str] = []
        self._unsaid = 0  # how many more failed
        self._open = False
        self._folders: dict[str, Folder] = {}  # by their real paths
        self._by_path: dict[str, str] = {}  # the real paths of these
        self._begun_in = Path()  # the folder that relative paths begin in, wherever the program goes meanwhile

    @contextmanager
    def of(self, folders: Iterable[str]) -> Iterator[None]:
        """Hold these folders, and those that are written to meanwhile, until this context ends.

        Raises:
            CheckpointError: one cannot be written to, or another run writes to it.
        """
        self._open = True
        with suppress(OSError):  # the present folder may have been removed
            self._begun_in = Path().absolute()
        try:
            for path in sorted(folders):
                self._held(Path(path))
            yield
        finally:
            self._open = False
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
            yield

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
