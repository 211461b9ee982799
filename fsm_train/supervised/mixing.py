"""Mixing the samples of a batch with one another. The given tensors are never changed in place."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from ..core.commands import CutMix, MixUp
from ..core.errors import WorkloadError
from ..data.batches import map_tensors, tensors
from .loss_parts import LossFn, mixed


@attrs.frozen
class Mix:
    """How the loss of a mixed batch is computed.

    Attributes:
        weight: of the loss for the samples' own targets, from 0 to 1; the rest is that for their partners'.
        partners: for each sample the index of its partner, of shape (batch_size,).
    """

    weight: float
    partners: torch.Tensor

    def loss(self, loss_fn: LossFn, output: Any, target: Any) -> Any:
        """The loss of the mixed batch; of a loss by parts each part."""
        others = map_tensors(target, lambda tensor: tensor[self.partners])
        return mixed(self.weight, loss_fn(output, target), loss_fn(output, others))


def _partners(inputs: Any, seed: int, device: torch.device) -> torch.Tensor:
    """A permutation of the first dimension of the inputs, the same for one seed on any device."""
    first = next((tensor for tensor in tensors(inputs) if tensor.ndim), None)
    if first is None:
        raise WorkloadError(f"there is no tensor to mix in the inputs of a batch, a {type(inputs).__name__}")
    partners = torch.randperm(first.size(0), generator=torch.Generator().manual_seed(seed))
    if device.type == "cuda":  # a copy from pinned memory does not wait for the device
        return partners.pin_memory().to(device, non_blocking=True)
    return partners.to(device)


def mix_up(inputs: Any, device: torch.device, command: MixUp) -> tuple[Any, Mix]:
    """The mixed inputs, and how their loss is computed.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Raises:
        WorkloadError: inputs are not of floating point.
    """
    partners = _partners(inputs, command.seed, device)

    def mix(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            raise WorkloadError(f"inputs of type {tensor.dtype} cannot be mixed: mixup is for inputs of floating point")
        return command.weight * tensor + (1 - command.weight) * tensor[partners]

    return map_tensors(inputs, mix), Mix(command.weight, partners)


def cut_mix(inputs: Any, device: torch.device, command: CutMix) -> tuple[Any, Mix]:
    """The inputs with a box from their partners, and how their loss is computed: by the area outside of the box.

    Source: Yun et al., "CutMix", ICCV 2019.

    Raises:
        WorkloadError: inputs have no height and width.
    """
    partners = _partners(inputs, command.seed, device)
    own_share = [1.0]  # of the area

    def mix(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 3:
            raise WorkloadError(
                f"inputs of shape {tuple(tensor.shape)} have no boxes: cutmix is for (batch, …, height, width)"
            )
        height, width = tensor.shape[-2:]
        top, bottom = _side(command.y, height, command.weight)
        left, right = _side(command.x, width, command.weight)
        result = tensor.clone()
        result[..., top:bottom, left:right] = tensor[partners][..., top:bottom, left:right]
        own_share[0] = 1 - (bottom - top) * (right - left) / (height * width)
        return result

    inputs = map_tensors(inputs, mix)
    return inputs, Mix(own_share[0], partners)


def _side(middle: float, length: int, weight: float) -> tuple[int, int]:
    """Where the box begins and ends along one side, in pixels, clipped at the border."""
    half = length * (1 - weight) ** 0.5 / 2
    at = middle * length
    return max(round(at - half), 0), min(round(at + half), length)
