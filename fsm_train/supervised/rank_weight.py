"""What a rank's loss weighs, so that the mean of the ranks' gradients is the gradient of their union.

Rule of this file: a rank whose batch counts nothing takes part in the reduction of gradients, and adds nothing to it.
"""

from __future__ import annotations

from typing import Any

import torch


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
