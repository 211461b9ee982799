"""What a rank's loss weighs, so that the mean of the ranks' gradients is the gradient of their union.

Rule of this file: a rank whose batch counts nothing takes part in the reduction of gradients, and adds nothing to it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..core.errors import WorkloadError


def check_can_weigh(work: Any, weight: float) -> None:
    """Refuse a weight of this rank other than 1 where `loss.backward()` is not called, or called again by a closure.

    Raises:
        WorkloadError: the backward is the user's own, or the optimizer evaluates its batch again.
    """
    if weight == 1.0 or not (work.gives_closure or work.custom_backward is not None):
        return
    who = "the optimizer evaluates its batch again, by a closure" if work.gives_closure else "its backward is its own"
    raise WorkloadError(
        f"the batch of this rank counts {weight:g} times the mean over ranks, by which its loss is weighed before "
        f"loss.backward(); but {who}: give each rank batches that count as much"
    )


def weigh_rank(work: Any, loss: torch.Tensor) -> torch.Tensor:
    """The loss for backward, times the weight of this rank. Where that is 0, what is not a number counts nothing too.

    Args:
        work: the training, with its `rank_weight`.
        loss: with its graph.
    """
    if work.rank_weight != 0.0:
        return loss * float(work.rank_weight)
    # 0 times NaN is NaN. Each parameter gets a gradient, since the other ranks wait for it.
    nothing = torch.zeros_like(loss)
    for parameter in work.wrapped_model.parameters():
        if parameter.requires_grad:
            nothing = nothing + 0.0 * parameter.sum().to(loss)
    return nothing
