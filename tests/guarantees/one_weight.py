"""A training whose one weight counts its steps, and what can happen to the files that it writes."""

from __future__ import annotations

import builtins
import errno
import io
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Phase, State, Supervised, on


def counting(data: Any = None, valid: bool = False, **settings: Any) -> Supervised:
    """A model with one weight, which counts the steps: an epoch is one, unless `data` says something else.

    Args:
        data: batches of a one and a zero.
        valid: whether there is a validation, whose loss is the weight.
        **settings: of the workload.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def loss(output: torch.Tensor, of_validation: torch.Tensor) -> torch.Tensor:
        return torch.where(of_validation > 0, output, -output).mean()

    train = [(torch.ones(1, 1), torch.zeros(1, 1))] if data is None else data
    validation = [(torch.ones(1, 1), torch.ones(1, 1))] if valid else None
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=1.0), loss, train, validation, **settings)


def weight(work: Supervised) -> float:
    return work.model.weight.item()  # type: ignore[no-any-return, operator, union-attr]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def in_epoch(**epochs: Callable[[], object]) -> Any:
    """Does something when epochs begin, which are given as epoch_1=…"""

    @on(Phase.EPOCH_BEGIN)
    def meanwhile(state: State) -> None:
        epochs.get(f"epoch_{state.epoch + 1}", lambda: None)()

    return meanwhile


def no_space() -> None:
    """As a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Faulty:
    """Counts what is done to files below a folder, and lets something happen at some of these calls.

    Args:
        folder: the folder.
        fails_at: the numbers of these calls, from 1 on.
        happens: what happens; it may raise.
        monkeypatch: undoes it.
        after: whether that call is done before.

    Attributes:
        calls: what was called, by name.
    """

    def __init__(
        self,
        folder: Path,
        fails_at: Collection[int],
        happens: Callable[[], object],
        monkeypatch: pytest.MonkeyPatch,
        *,
        after: bool = False,
    ) -> None:
        self.folder, self.fails_at, self.happens, self.after = str(folder), fails_at, happens, after
        self.calls: list[str] = []
        self.descriptors: set[int] = set()
        for name in ("mkdir", "rename", "unlink", "rmdir", "open", "replace", "link"):
            monkeypatch.setattr(os, name, self._of_a_path(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self._opening(io.open))
        monkeypatch.setattr(builtins, "open", self._opening(builtins.open))
        monkeypatch.setattr(os, "fsync", self._fsync(os.fsync))

    def counted(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        now = len(self.calls) in self.fails_at
        if now and not self.after:
            self.happens()
        result: Any = None
        try:
            result = function(*args, **kwargs)
        finally:
            if now and self.after:
                try:
                    self.happens()
                except BaseException:
                    if hasattr(result, "close"):  # a file that nobody got
                        result.close()
                    raise
        return result

    def _of_a_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any, *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(self.folder):
                return self.counted(name, function, path, *args, **kwargs)
            return function(path, *args, **kwargs)

        return instead

    def _fsync(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def instead(descriptor: int) -> None:
            if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(self.folder):
                self.counted("fsync", function, descriptor)
            else:
                function(descriptor)

        return instead

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not str(path).startswith(self.folder):
                return function(path, mode, *args, **kwargs)
            file = self.counted(f"open {mode}", function, path, mode, *args, **kwargs)
            return file if mode == "rb" else _CountedFile(file, self)

        return instead


class _CountedFile:
    """A file whose writes count."""

    def __init__(self, file: Any, faulty: Faulty) -> None:
        self._file, self._faulty = file, faulty

    def write(self, data: Any) -> Any:
        return self._faulty.counted("write", self._file.write, data)

    def __enter__(self) -> Any:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: object) -> Any:
        return self._file.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
