"""Which parts of a model are in train mode while it is trained.

Rule of this file: a part that was in eval mode before the training stays so.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..data.compiled import named_modules, uncompiled
from .freezing import FrozenParameters
from .modules import Modes


class TrainingModes:
    """The modes of the modules of a `Training`."""

    model: nn.Module
    frozen_parameters: FrozenParameters
    undo_at_finish: Callable[[Callable[[], None]], None]
    _eval_parts: tuple[nn.Module, ...] = ()  # those that were in eval mode when the model was in train mode

    def use_training_modes(self) -> None:
        """Put the model in train mode, and leave those parts in eval mode that were so before."""
        if self.model.training:
            frozen = self.frozen_parameters.batch_norms
            self._eval_parts = tuple(m for m in self.model.modules() if not m.training and m not in frozen)
        self.model.train()
        for part in (*self._eval_parts, *self.frozen_parameters.batch_norms):
            part.training = False

    def begin_modes(self) -> None:
        """Train in train mode in this call of `run`; a model that was in eval mode is so again when it ends."""
        if not self.model.training:  # after a prediction, say
            self.undo_at_finish(Modes.of(self.model).put_back)
        self.use_training_modes()

    def training_modes(self) -> dict[str, bool]:
        """By name, whether each part of the model is in train mode when it is trained, and not frozen."""
        frozen = self.frozen_parameters.batch_norms
        if self.model.training:
            return {name: frozen.get(uncompiled(part), part.training) for name, part in named_modules(self.model)}
        learn = {name: uncompiled(part) for name, part in named_modules(self.model)}
        return {name: frozen.get(part, part not in self._eval_parts) for name, part in learn.items()}
