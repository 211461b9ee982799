"""What can be reached from a training: its data, and the random generators that are its own.

Rule of this file: it only looks. What is found is what a search would find now; where nothing has changed since the
last one, none is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from torch import nn

from ..data.batches import Forward, Split
from ..data.layers import Layer
from ..data.reached import Reached
from .evaluations import BoundEvaluation, own_parts
from .loss_parts import LossFn
from .own_backward import Backward


class Surroundings:
    """The data of a `Training`, and its own generators.

    Attributes:
        reached: the layers of its data, and what else can be reached from it.
    """

    model: nn.Module
    loss_fn: LossFn
    train: Iterable[Any]
    evaluations: tuple[BoundEvaluation, ...]
    custom_forward: Forward | None
    custom_backward: Backward | None
    _split: Split | None

    @cached_property
    def reached(self) -> Reached:
        return Reached()

    def own_generators(self) -> list[Layer]:
        """The generators of this training alone: in loaders, samplers, datasets, functions and modules."""
        ours = {"forward": self.custom_forward, "backward": self.custom_backward, "split": self._split}
        parts = {**ours, "loss": self.loss_fn, "model": self.model, **dict(own_parts(self.evaluations))}
        return self.reached.generators_of(**self._roots(), **parts)

    def loader_generators(self) -> list[Any]:
        """The generators of `own_generators`, without their paths."""
        return [layer.part for layer in self.own_generators()]

    def _roots(self) -> dict[str, object]:
        """The data, by the beginnings of the paths of what they hold."""
        return {"train": self.train, **{each.argument: each.loader for each in self.evaluations}}
