"""Which parameters are frozen, by patterns of their names."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from ..core.errors import WorkloadError


class Frozen:
    """Keeps parameters without gradient while some pattern matches their name."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.patterns: list[str] = []
        self.trainable: dict[str, bool] = {}  # as it was before anything was frozen

    def add(self, pattern: str) -> None:
        """Freeze what matches the pattern.

        Raises:
            WorkloadError: no parameter does.
        """
        names = [name for name, _ in self.model.named_parameters()]
        if not any(fnmatchcase(name, pattern) for name in names):
            there_are = ", ".join(names[:12]) + ", …" * (len(names) > 12)
            raise WorkloadError(f"no parameter matches {pattern!r}: there are {there_are}")
        if not self.patterns:
            self.trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        self.patterns.append(pattern)
        self._apply()

    def remove(self, pattern: str) -> None:
        """Take back one freezing by this pattern."""
        if pattern in self.patterns:
            self.patterns.remove(pattern)
            self._apply()

    def clear(self) -> None:
        """Take back everything."""
        if self.patterns:
            self.patterns = []
            self._apply()

    def _apply(self) -> None:
        for name, parameter in self.model.named_parameters():
            frozen = any(fnmatchcase(name, pattern) for pattern in self.patterns)
            if frozen:
                parameter.grad = None  # or momentum and weight decay would still move it
            parameter.requires_grad_(self.trainable[name] and not frozen)
