"""Copies of weights to restore later, with copies of the averages that there were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from ..core.errors import WorkloadError
from ..data.compiled import named_buffers, state_dict_of
from .averages import Average
from .modules import StateDict, copy_of_module, initialized, put_back_module
from .structure import follow


@attrs.define
class KeptWeights:
    """Weights at one moment.

    Attributes:
        modules: by kind ("model", "loss"), a copy of the module's values and buffers.
        averages: by name, a copy of each average.
    """

    modules: dict[str, StateDict]
    averages: dict[str, StateDict]

    @staticmethod
    def of(modules: Mapping[str, nn.Module], averages: Mapping[str, Average]) -> KeptWeights:
        """Copies of the present weights."""
        in_use = [average for average in averages.values() if average.in_use]
        for average in in_use:
            average.use(False)
        kept = KeptWeights(
            {kind: copy_of_module(module) for kind, module in modules.items()},
            {name: average.copy() for name, average in averages.items()},
        )
        for average in in_use:
            average.use(True)
        return kept

    def put_back(self, modules: Mapping[str, nn.Module], averages: Mapping[str, Average]) -> None:
        """Restore them; more than once, if asked to. A loss goes on counting what it has counted."""
        for kind, module in modules.items():
            if kind in self.modules:
                now = {} if kind == "model" else _counters(module)
                values, buffers = (self.modules[kind][part] for part in ("values", "buffers"))
                put_back_module(module, {"values": _but(values, now), "buffers": _but(buffers, now)})
        for name, average in self.averages.items():
            if name in averages:
                averages[name].put_back(average)

    def check(self, name: str, modules: Mapping[str, nn.Module]) -> None:
        """Take over the names that the modules have now.

        Args:
            name: of these weights, for the message.

        Raises:
            WorkloadError: the weights do not fit any more, and cannot be made to.
        """
        for kind, module in modules.items():
            kept = self.modules.get(kind)
            if kept is None or kept["buffers"] is None:
                continue
            now = _parameters_and_masks(module)
            values = {own: value for own, value in kept["values"].items() if own not in kept["buffers"]}
            masks = {own: value for own, value in kept["buffers"].items() if own.endswith("_mask")}
            followed, difference = follow(values | masks, now, now.keys() - dict(named_buffers(module)).keys())
            if difference:
                raise WorkloadError(
                    f"the weights that {name!r} has kept do not fit the {kind} any more: {difference}. "
                    "Begin a training after such a change, so that the best is one of the present structure: "
                    "start(workload, …) with the changed model"
                )
            if followed.keys() != values.keys() | masks.keys():
                buffers = {own: value for own, value in kept["buffers"].items() if own not in masks}
                buffers |= {own: value for own, value in followed.items() if own.endswith("_mask")}
                others = {own: value for own, value in kept["values"].items() if own in kept["buffers"]}
                kept["values"] = {own: v for own, v in (others | followed).items() if own in state_dict_of(module)}
                kept["buffers"] = buffers

    def state(self) -> list[Any]:
        """What `of_state` makes the record of. The tensors are the live ones."""
        return [self.modules, self.averages]

    @staticmethod
    def of_state(state: list[Any]) -> KeptWeights:
        """The inverse of `state`; also of what earlier versions saved, which was the model's state_dict alone."""
        modules, averages = state
        if not isinstance(modules.get("model"), dict):
            modules = {"model": {"values": modules, "buffers": None}}
        return KeptWeights(modules, averages)


def _parameters_and_masks(module: nn.Module) -> dict[str, torch.Tensor]:
    """What has to be there under the same name: buffers may come and go, but those of torch.nn.utils.prune."""
    buffers = dict(named_buffers(module))
    values = initialized(state_dict_of(module))
    return {own: value for own, value in values.items() if own not in buffers or own.endswith("_mask")}


def _counters(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that are single whole numbers, such as a number of steps: they count what happened."""
    buffers = named_buffers(module)
    return {name: b for name, b in buffers if b.dim() == 0 and not (b.is_floating_point() or b.is_complex())}


def _but(values: StateDict | None, present: Mapping[str, torch.Tensor]) -> StateDict | None:
    """The values, with the present ones of the same name in their place."""
    return values and {name: present.get(name, value) for name, value in values.items()}
