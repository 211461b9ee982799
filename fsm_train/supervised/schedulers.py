"""How long a scheduler of torch is, as far as it says so itself.

Rule of this file: the optimizer that is trained is not touched. A scheduler writes to its optimizer when it is made,
so the one that is looked at is made of a stand-in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .joint_optimizer import AnyOptimizer, JointOptimizer

Span = tuple[int, int | None]
"""The fewest units that a scheduler needs, and where it ends; None if it has no end. As the span of a schedule."""


def scheduler_length(make: Callable[[Any], Any], optimizer: AnyOptimizer) -> tuple[str, Span] | None:
    """The scheduler that `make` makes, in words, and its span; None if that is not known.

    >>> from torch.optim.lr_scheduler import CosineAnnealingLR
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    >>> scheduler_length(lambda optimizer: CosineAnnealingLR(optimizer, 5), optimizer)
    ('CosineAnnealingLR(T_max=5)', (5, 5))
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return _length_of(make(_stand_in(optimizer)))
    except Exception:
        return None  # what is wrong with it is raised where it is made for the training


def _stand_in(optimizer: AnyOptimizer) -> AnyOptimizer:
    """An optimizer with the same numbers in groups of its own.

    Raises:
        TypeError: its groups are those of another one, which it would write to.
    """
    if isinstance(optimizer, JointOptimizer):
        return JointOptimizer({name: _stand_in_of_one(each) for name, each in optimizer.optimizers.items()})
    return _stand_in_of_one(optimizer)


def _stand_in_of_one(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    if isinstance(getattr(type(optimizer), "param_groups", None), property):
        raise TypeError(f"the groups of a {type(optimizer).__name__} are those of another optimizer")
    stand_in: torch.optim.Optimizer = object.__new__(type(optimizer))
    vars(stand_in).update(vars(optimizer))
    vars(stand_in).pop("step", None)  # the function of a scheduler that was made of it before
    stand_in.param_groups = [
        {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    return stand_in


_BY_ATTRIBUTE: Mapping[str, tuple[str, bool]] = {
    "OneCycleLR": ("total_steps", True),
    "CosineAnnealingLR": ("T_max", True),
    "PolynomialLR": ("total_iters", True),
    "CosineAnnealingWarmRestarts": ("T_0", False),
    "StepLR": ("step_size", False),
    "ConstantLR": ("total_iters", False),
    "LinearLR": ("total_iters", False),
    "MultiStepLR": ("milestones", False),
}
"""The attribute that has the length, and whether the scheduler ends there. The others go on with what they came to."""


def _length_of(scheduler: Any) -> tuple[str, Span] | None:
    kind = type(scheduler).__name__
    parts = [_length_of(part) for part in getattr(scheduler, "_schedulers", ())]
    if kind == "SequentialLR" and parts[-1] is not None:
        text, (shortest, longest) = parts[-1]
        first = scheduler._milestones[-1]
        return f"SequentialLR(…, {text}) from {first}", (first + shortest, None if longest is None else first + longest)
    if kind not in _BY_ATTRIBUTE:
        return None
    attribute, ends = _BY_ATTRIBUTE[kind]
    value = getattr(scheduler, attribute)
    length = max(value, default=0) if attribute == "milestones" else int(value)
    return f"{kind}({attribute}={sorted(value) if attribute == 'milestones' else length})", (
        length,
        length if ends else None,
    )
