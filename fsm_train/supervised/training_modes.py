"""Which parts of a model are in train mode while it is trained.

Rule of this file: a part that was in eval mode before the training stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_

from torch import nn

from ..data.compiled import named_modules, uncompiled
from .freezing import FrozenParameters
from .modules import Modes


class Learning:
    """The parts of a model that are all in train mode, to see whether they still are and `train` would do nothing.

    Args:
        parts: as `model.modules()` gives them.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self._parts = parts
        self._kinds = {type(part) for part in parts}
        self._inside = [inner for part in parts for inner in vars(part)["_modules"].values()]

    @staticmethod
    def of(model: nn.Module) -> Learning | None:
        """None if a part is in eval mode, or has a `train` or a `training` of its own."""
        parts = [*model.modules()]
        own = any(not isinstance(vars(part).get("_modules"), dict) or "training" not in vars(part) for part in parts)
        learning = None if own else Learning(parts)
        return learning if learning is not None and learning.are_of(model) else None

    def are_of(self, model: nn.Module) -> bool:
        """Whether these are the parts of this model, and all of them in train mode."""
        if model is not self._parts[0]:
            return False
        for kind in self._kinds:
            if kind.train is not nn.Module.train:
                return False
        inside: list[nn.Module | None] = []
        for part in self._parts:
            variables = part.__dict__
            if not variables["training"] or "train" in variables:
                return False
            inside += variables["_modules"].values()
        return len(inside) == len(self._inside) and all(map(is_, inside, self._inside))


class TrainingModes:
    """The modes of the modules of a `Training`."""

    model: nn.Module
    frozen_parameters: FrozenParameters
    undo_at_finish: Callable[[Callable[[], None]], None]
    _eval_parts: tuple[nn.Module, ...] = ()  # those that were in eval mode when the model was in train mode
    _learning: Learning | None = None

    def use_training_modes(self) -> None:
        """Put the model in train mode, and leave those parts in eval mode that were so before."""
        frozen = self.frozen_parameters.batch_norms
        if self._learning is not None and not frozen and self._learning.are_of(self.model):
            self._eval_parts = ()
            return
        if self.model.training:
            self._eval_parts = tuple(m for m in self.model.modules() if not m.training and m not in frozen)
        self.model.train()
        for part in (*self._eval_parts, *frozen):
            part.training = False
        self._learning = Learning.of(self.model)

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
