"""Mixing the samples of a batch with one another. The batch itself is never written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch

from ..core.commands import CutMix, MixUp
from ..core.errors import WorkloadError
from ..data.batches import mapped


@attrs.frozen
class Mix:
    """How the loss of a mixed batch is made: `weight` of that for each target, the rest of that for its partner's."""

    weight: float
    partners: torch.Tensor

    def loss(self, loss_fn: Callable[[Any, Any], torch.Tensor], output: Any, target: Any) -> torch.Tensor:
        others = mapped(target, lambda tensor: tensor[self.partners])
        return self.weight * loss_fn(output, target) + (1 - self.weight) * loss_fn(output, others)


def _partners(samples: int, seed: int, device: torch.device) -> torch.Tensor:
    """A permutation that depends on the seed alone, on whatever device."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).to(device)


def mix_up(inputs: Any, samples: int, device: torch.device, command: MixUp) -> tuple[Any, Mix]:
    """The inputs, mixed, and how their loss is made."""
    partners = _partners(samples, command.seed, device)

    def mixed(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            raise WorkloadError(f"inputs of type {tensor.dtype} cannot be mixed: mixup is for inputs of floating point")
        return command.weight * tensor + (1 - command.weight) * tensor[partners]

    return mapped(inputs, mixed), Mix(command.weight, partners)


def cut_mix(inputs: Any, samples: int, device: torch.device, command: CutMix) -> tuple[Any, Mix]:
    """The inputs with a box from their partners, and how their loss is made: by the area that is left."""
    partners = _partners(samples, command.seed, device)
    kept = [1.0]

    def mixed(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 3:
            raise WorkloadError(
                f"inputs of shape {tuple(tensor.shape)} have no boxes: cutmix is for (batch, …, height, width)"
            )
        height, width = tensor.shape[-2:]
        top, bottom = _side(command.y, height, command.weight)
        left, right = _side(command.x, width, command.weight)
        result = tensor.clone()
        result[..., top:bottom, left:right] = tensor[partners][..., top:bottom, left:right]
        kept[0] = 1 - (bottom - top) * (right - left) / (height * width)
        return result

    inputs = mapped(inputs, mixed)
    return inputs, Mix(kept[0], partners)


def _side(middle: float, length: int, weight: float) -> tuple[int, int]:
    """Where the box begins and ends along one side; it may be cut off by the border."""
    half = length * (1 - weight) ** 0.5 / 2
    at = middle * length
    return max(round(at - half), 0), min(round(at + half), length)
