"""What can be reached from a training: its data, how much of them there is, and the random generators that are its own.

Rule of this file: it only looks. What is found is what a search would find now; where nothing has changed since the
last one, none is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from torch import nn

from ..data.batches import Forward, Split, number_of_batches
from ..data.counting import Samples
from ..data.known_sizes import known_sizes
from ..data.layers import Layer
from ..data.reached import Reached
from ..data.whole_data import whole_data
from .evaluations import BoundEvaluation, own_parts, sizes_of_validation
from .loss_parts import LossFn
from .own_backward import Backward
from .sharded_model import computes_one_batch_together


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
    _samples: Samples | None

    @cached_property
    def reached(self) -> Reached:
        return Reached()

    @property
    def batches_per_epoch(self) -> int | None:
        """`len(train)`; None if it has none, as an iterable of unknown length."""
        return number_of_batches(self.train)

    @property
    def known_sizes(self) -> tuple[int, float, float] | None:
        return known_sizes(self.train) if self._samples is None and self._split is None else None

    @property
    def known_valid_sizes(self) -> tuple[int, float, float] | None:
        if self._samples is not None or self._split is not None:
            return None
        return sizes_of_validation(self.evaluations)

    @property
    def whole_data(self) -> tuple[float, float]:
        if computes_one_batch_together(self.model):
            return 0.0, 0.0  # these ranks are to read the same
        return whole_data(self.train), whole_data(*(each.loader for each in self.evaluations))

    def own_generators(self) -> list[Layer]:
        """The generators of this training alone: in loaders, samplers, datasets, functions and modules."""
        return self.reached.generators_of(**self.searched())

    def loader_generators(self) -> list[Any]:
        """The generators of `own_generators`, without their paths."""
        return [layer.part for layer in self.own_generators()]

    def searched(self) -> dict[str, object]:
        """The data, and all else that may hold generators, by the beginnings of their paths."""
        ours = {"forward": self.custom_forward, "backward": self.custom_backward, "split": self._split}
        parts = {**ours, "loss": self.loss_fn, "model": self.model, **dict(own_parts(self.evaluations))}
        return {**self._roots(), **parts}

    def _roots(self) -> dict[str, object]:
        """The data, by the beginnings of the paths of what they hold."""
        return {"train": self.train, **{each.argument: each.loader for each in self.evaluations}}
