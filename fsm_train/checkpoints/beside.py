"""A checkpoint that is written beside the training: of copies, in a thread.

Rule of this file: the training is stopped for the copies alone. Its thread takes part in no collective of the ranks:
those of two threads would meet in another order on each rank. What ranks tell each other of it goes by `Peers.beside`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch

from .peers import failure_text
from .shard_writing import Shares
from .writing import Parts

NAME = "fsm_train checkpoint"
"""Of the thread."""

ToWrite = Callable[[], tuple[Parts, Shares]]
"""Gives what a checkpoint is written of, or raises what a device or the memory refused."""


class Beside:
    """A checkpoint that is being written.

    Args:
        write: writes it. It gives what could not be done, in words; empty if the checkpoint is in its place.
    """

    def __init__(self, write: Callable[[], str]) -> None:
        self._write = write
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name=NAME)
        try:
            self._thread.start()
        except RuntimeError:  # no further thread can be started, so it is written here
            self._run()

    @property
    def under_way(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> str:
        """What could not be done, in words, once all is written; empty if the checkpoint is in its place."""
        if self._thread.ident is not None:
            self._thread.join()
        return self._trouble

    def _run(self) -> None:
        try:
            self._trouble = self._write()
        except BaseException as error:  # of the ranks, which may no longer meet; the training learns of it there
            self._trouble = failure_text(error)


def given(parts: Parts, shares: Shares) -> ToWrite:
    """These as they are, to be written before the training goes on."""
    return lambda: (parts, shares)


def copies(parts: Parts, shares: Shares) -> ToWrite:
    """Copies of these in the memory of the machine; what has one memory has one again."""
    try:
        return given(_copied(parts, {}), shares.copied())
    except (RuntimeError, MemoryError) as error:
        refused = error

    def raises() -> tuple[Parts, Shares]:
        raise refused

    return raises


def _copied(value: Any, storages: dict[int, torch.UntypedStorage]) -> Any:
    if isinstance(value, torch.Tensor):
        return _copy_of(value.detach(), storages)
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, inside in value.items():
            made[key] = _copied(inside, storages)  # `update` would add the numbers of a Counter
        return made
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(inside, storages) for inside in value)
    return value


def _copy_of(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """A copy, of which the memory is copied once for all tensors in it, as torch.save writes it."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return tensor.to("cpu", copy=True)
    storage = tensor.untyped_storage()
    key = storage._cdata
    if key not in storages:
        on_cpu: Any = storage  # whose methods have no types
        storages[key] = on_cpu.clone() if storage.device.type == "cpu" else on_cpu.cpu()
    made = torch.empty(0, dtype=tensor.dtype)
    return made.set_(storages[key], tensor.storage_offset(), tensor.shape, tensor.stride())
