"""What a rank's loss weighs, so that the mean of the ranks' gradients is the gradient of their union.

Rule of this file: a rank whose batch counts nothing takes part in the reduction of gradients, and adds nothing to it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..core.errors import WorkloadError
from .sharded_model import no_gradient


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
    # Each rank has a share of the gradient of a penalty on shares, and no mean over ranks is made of it.
    penalty = None if work.window.penalty is None else work.window.penalty * work.window.weight
    if work.rank_weight != 0.0:
        weighed = loss * float(work.rank_weight)
        return weighed if penalty is None else weighed + (1.0 - float(work.rank_weight)) * penalty
    # 0 times NaN is NaN. Each parameter gets a gradient, since the other ranks wait for it.
    if work.shards:
        return no_gradient(work.output, loss) + (0.0 if penalty is None else penalty)
    nothing = torch.zeros_like(loss)
    for parameter in work.wrapped_model.parameters():
        if parameter.requires_grad:
            nothing = nothing + 0.0 * parameter.sum().to(loss)
    return nothing
