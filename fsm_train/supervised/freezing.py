"""Which parameters are frozen, by patterns of their names."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from ..core.errors import WorkloadError


class FrozenParameters:
    """The parameters of a model whose names match a pattern: they require no gradient.

    Attributes:
        model: whose parameters are frozen.
        patterns: in the style of fnmatch; one pattern may be there more than once.
        trainable: by name, whether the parameter required a gradient before the first pattern.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.patterns: list[str] = []
        self.trainable: dict[str, bool] = {}

    def add(self, pattern: str) -> None:
        """Freeze the parameters that match the pattern.

        Raises:
            WorkloadError: no parameter matches.
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
        """Undo one `add` of this pattern, if there is one."""
        if pattern in self.patterns:
            self.patterns.remove(pattern)
            self._apply()

    def clear(self) -> None:
        """Undo every `add`."""
        if self.patterns:
            self.patterns = []
            self._apply()

    def _apply(self) -> None:
        for name, parameter in self.model.named_parameters():
            frozen = any(fnmatchcase(name, pattern) for pattern in self.patterns)
            if frozen:
                parameter.grad = None  # with a gradient, momentum and weight decay would still change it
            parameter.requires_grad_(self.trainable[name] and not frozen)
