"""The buffers that a forward pass may change, such as the statistics of batch norm, kept and put back."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_not

import torch
from torch import nn


class Buffers:
    """Copies of the buffers of some modules, for a batch that may be left out after its forward pass.

    The copies are made in memory that is allocated once. A buffer that is not initialized yet is not copied.

    Args:
        modules: the model, say; their parts are included. They are looked for when `keep` is called first.

    Attributes:
        kept: whether `keep` was called for the batch under way; a fetch sets it to False.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.kept = False
        self._modules = modules
        self._parts: list[nn.Module] = []
        self._dicts: list[dict[str, torch.Tensor | None]] = []
        self._latest: list[torch.Tensor | None] = []  # the buffers of all parts, as `keep` found them
        self._places: list[tuple[nn.Module, str]] = []  # where each of them was
        self._originals: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []

    def keep(self) -> None:
        """Copy the buffers as they are now."""
        self.kept = True
        if not self._parts:  # looked for where they are needed: a whole step keeps none
            self._parts = [part for module in self._modules for part in module.modules()]
            self._dicts = [part._buffers for part in self._parts]
        if not self._latest and not any(self._dicts):
            return
        latest = [buffer for buffers in self._dicts for buffer in buffers.values()]
        if len(latest) != len(self._latest) or any(map(is_not, latest, self._latest)) or self._resized():
            self._latest = latest
            self._places = [(part, name) for part in self._parts for name in part._buffers]
            self._originals = [buffer for buffer in latest if buffer is not None and _can_be_written(buffer)]
            self._copies = [buffer.detach().clone() for buffer in self._originals]
        elif self._originals:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._originals)

    def put_back(self) -> None:
        """Restore the buffers as `keep` found them, also those that were replaced by other tensors."""
        for (part, name), buffer in zip(self._places, self._latest, strict=True):
            if part._buffers.get(name) is not buffer and not _is_cache(part, name, buffer):
                part._buffers[name] = buffer
        if self._originals:
            with torch.no_grad():
                torch._foreach_copy_(self._originals, self._copies)

    def _resized(self) -> bool:
        return any(a.shape != b.shape for a, b in zip(self._originals, self._copies, strict=True))


def _can_be_written(buffer: torch.Tensor) -> bool:
    """Whether it has values of its own in memory: not so of a lazy one, and of one that `expand` made."""
    if nn.parameter.is_lazy(buffer):
        return False
    return all(stride > 0 or size <= 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))


def _is_cache(part: nn.Module, name: str, before: torch.Tensor | None) -> bool:
    """Whether a forward pass replaced a buffer that is not saved by one of another shape, as rotary embeddings do.

    What the module notes of its length is in no buffer, so that the new one has to stay.
    """
    now = part._buffers.get(name)
    if name not in part._non_persistent_buffers_set or now is None:
        return False
    return before is None or now.shape != before.shape
