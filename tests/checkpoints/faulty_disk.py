"""A disk at whose calls something happens: one fails, or all that change something do; below a folder, for root too."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("mkdir", "rename", "unlink", "rmdir", "replace", "link", "open", "write", "fsync")
LOOKS = ("stat", "lstat", "listdir", "scandir", "preadv")


class FaultyDisk:
    """Counts what is done to files below a folder, and lets something happen at some of these calls.

    Args:
        folder: what lies elsewhere is left alone.
        happens: an error that is raised, or a function that is called, which may raise.
        monkeypatch: undoes it.
        at: the numbers of the calls at which it happens, counted from 1.
        after: whether that call is done before.
        looks: whether calls that change nothing count too.

    Attributes:
        calls: what was called, by name.
        refuses: the names of the calls at which it happens from now on.
    """

    def __init__(
        self,
        folder: Path,
        happens: OSError | Callable[[], object],
        monkeypatch: pytest.MonkeyPatch,
        at: Collection[int] = (),
        *,
        after: bool = False,
        looks: bool = True,
    ) -> None:
        self.folder, self.happens, self.at, self.after = str(folder), happens, at, after
        self.calls: list[str] = []
        self.refuses: tuple[str, ...] = ()
        self._counts = (*CHANGES, *(("read", *LOOKS) if looks else ()))
        for name in ("mkdir", "rename", "unlink", "rmdir", "replace", "link", "open", *LOOKS[:4]):
            monkeypatch.setattr(os, name, self._of_a_path(name, getattr(os, name)))
        for name in ("fsync", "preadv"):
            monkeypatch.setattr(os, name, self._of_a_descriptor(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self._opening(io.open))
        monkeypatch.setattr(builtins, "open", self._opening(builtins.open))

    def counted(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call this function, whose call has this name."""
        kind = name.split()[0]
        if kind not in self._counts:
            return function(*args, **kwargs)
        self.calls.append(name)
        now = len(self.calls) in self.at or kind in self.refuses
        if now and not self.after:
            self._happen()
        result: Any = None
        try:
            result = function(*args, **kwargs)
        finally:
            if now and self.after:
                try:
                    self._happen()
                except BaseException:
                    if hasattr(result, "close"):  # a file that nobody got
                        result.close()
                    raise
        return result

    def _happen(self) -> None:
        if isinstance(self.happens, OSError):
            raise OSError(*self.happens.args)  # a new one each time, with a traceback of its own
        self.happens()

    def _of_a_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(self.folder) and not (name == "open" and not self._writes(*args[:1])):
                return self.counted(name, function, path, *args, **kwargs)
            return function(path, *args, **kwargs)

        return instead

    def _writes(self, flags: int = 0) -> bool:
        """Whether a file is opened with these flags to be written to; a folder that is flushed counts with fsync."""
        return bool(flags & (os.O_WRONLY | os.O_RDWR))

    def _of_a_descriptor(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(descriptor: int, *args: Any) -> Any:
            if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(self.folder):
                return self.counted(name, function, descriptor, *args)
            return function(descriptor, *args)

        return instead

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not str(path).startswith(self.folder):
                return function(path, mode, *args, **kwargs)
            name = f"read {mode}" if mode in ("r", "rb") else f"open {mode}"
            file = self.counted(name, function, path, mode, *args, **kwargs)
            return file if mode == "rb" else _CountedFile(file, self)

        return instead


class _CountedFile:
    """A file whose writes count."""

    def __init__(self, file: Any, disk: FaultyDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        return self._disk.counted("write", self._file.write, data)

    def __enter__(self) -> Any:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: object) -> Any:
        return self._file.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
