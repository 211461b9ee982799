"""What the model of a training consists of: its parts, and how many parameters each has.

Rule of this file: it counts. Nothing is initialized, moved or read from the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from torch import nn
from torch.nn.parameter import is_lazy

from ..core.model_part import ModelPart
from .training import Training


def model_parts(work: Training) -> tuple[ModelPart, ...]:
    """The parts of the model, in its order; of a part that is all of it, such as a wrapper, the parts of that."""
    groups = work.frozen_parameters.optimizer.param_groups  # which has those of all players
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    model: nn.Module = work.model
    while len(children := dict(model.named_children())) == 1 and not [*model.parameters(recurse=False)]:
        (inside,) = children.values()
        if not any(True for _ in inside.children()):
            break
        model = inside
    seen: set[int] = set()
    own = [_counted("", model, model.parameters(recurse=False), trained, seen)]
    parts = [_counted(name, part, part.parameters(), trained, seen) for name, part in children.items()]
    return tuple(part for part in (*own, *parts) if part.name or part.parameters or part.lazy)


def _counted(
    name: str, part: nn.Module, parameters: Iterable[nn.Parameter], trained: Set[int], seen: set[int]
) -> ModelPart:
    """The part with those of its parameters that were not seen before."""
    new = [*_unseen(parameters, seen)]
    sized = [parameter for parameter in new if not is_lazy(parameter)]
    return ModelPart(
        name,
        type(part).__name__,
        parameters=sum(parameter.numel() for parameter in sized),
        trained=sum(p.numel() for p in sized if p.requires_grad and id(p) in trained),
        lazy=len(new) - len(sized),
    )


def _unseen(parameters: Iterable[nn.Parameter], seen: set[int]) -> Iterator[nn.Parameter]:
    for parameter in parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter
