"""The buffers that a forward pass may change, such as the statistics of batch norm, kept and put back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Buffers:
    """Copies of the buffers of some modules, for a batch that may be left out after its forward pass.

    The copies are made in memory that is allocated once. A buffer that is not initialized yet is not copied.

    Args:
        modules: the model, say; their parts are included.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._parts = [part for module in modules for part in module.modules()]
        self._kept: list[tuple[nn.Module, str, torch.Tensor | None]] = []
        self._originals: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers as they are now."""
        kept = [(part, name, buffer) for part in self._parts for name, buffer in part._buffers.items()]
        if not _same_tensors(kept, self._kept) or any(
            a.shape != b.shape for a, b in zip(self._originals, self._copies, strict=True)
        ):
            self._kept = kept
            self._originals = [buffer for _, _, buffer in kept if buffer is not None and _can_be_written(buffer)]
            self._copies = [buffer.clone() for buffer in self._originals]
        elif self._originals:
            torch._foreach_copy_(self._copies, self._originals)

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the buffers as `keep` found them, also those that were replaced by other tensors."""
        for part, name, buffer in self._kept:
            if part._buffers.get(name) is not buffer and not _is_cache(part, name, buffer):
                part._buffers[name] = buffer
        if self._originals:
            torch._foreach_copy_(self._originals, self._copies)


def _same_tensors(
    kept: list[tuple[nn.Module, str, torch.Tensor | None]], before: list[tuple[nn.Module, str, torch.Tensor | None]]
) -> bool:
    return len(kept) == len(before) and all(a[2] is b[2] for a, b in zip(kept, before, strict=True))


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
