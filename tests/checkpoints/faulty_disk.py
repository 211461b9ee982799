"""A disk of which one call fails, or all calls that change something: below a folder, for root too."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("mkdir", "rename", "unlink", "rmdir", "replace", "link", "open", "write", "fsync")
LOOKS = ("stat", "lstat", "listdir", "scandir", "preadv")


class FaultyDisk:
    """Counts what is done to files below a folder, and lets some of these calls fail.

    Args:
        folder: what lies elsewhere is left alone.
        error: what is raised.
        monkeypatch: undoes it.
        fail_at: the number of the call that fails, counted from 1; 0 for none.

    Attributes:
        calls: what was called, by name.
        refuses: the names of the calls that all fail from now on.
    """

    def __init__(self, folder: Path, error: OSError, monkeypatch: pytest.MonkeyPatch, fail_at: int = 0) -> None:
        self.folder, self.fail_at, self.error = str(folder), fail_at, error
        self.calls: list[str] = []
        self.refuses: tuple[str, ...] = ()
        for name in ("mkdir", "rename", "unlink", "rmdir", "replace", "link", "open", *LOOKS[:4]):
            monkeypatch.setattr(os, name, self._of_a_path(name, getattr(os, name)))
        for name in ("fsync", "preadv"):
            monkeypatch.setattr(os, name, self._of_a_descriptor(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self._opening(io.open))
        monkeypatch.setattr(builtins, "open", self._opening(builtins.open))

    def count(self, name: str) -> None:
        """Count a call, and maybe fail."""
        self.calls.append(name)
        if len(self.calls) == self.fail_at or name.split()[0] in self.refuses:
            raise OSError(*self.error.args)  # a new one each time, with a traceback of its own

    def _of_a_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(self.folder) and not (name == "open" and not self._writes(*args[:1])):
                self.count(name)
            return function(path, *args, **kwargs)

        return instead

    def _writes(self, flags: int = 0) -> bool:
        """Whether a file is opened with these flags to be written to; a folder that is flushed counts with fsync."""
        return bool(flags & (os.O_WRONLY | os.O_RDWR))

    def _of_a_descriptor(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(descriptor: int, *args: Any) -> Any:
            if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(self.folder):
                self.count(name)
            return function(descriptor, *args)

        return instead

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not str(path).startswith(self.folder):
                return function(path, mode, *args, **kwargs)
            self.count(f"read {mode}" if mode in ("r", "rb") else f"open {mode}")
            file = function(path, mode, *args, **kwargs)
            return file if mode == "rb" else _CountedFile(file, self)

        return instead


class _CountedFile:
    """A file whose writes count."""

    def __init__(self, file: Any, disk: FaultyDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        self._disk.count("write")
        return self._file.write(data)

    def __enter__(self) -> Any:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: object) -> Any:
        return self._file.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
