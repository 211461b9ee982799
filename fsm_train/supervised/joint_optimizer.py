"""Several optimizers that step together, as one.

Rule of this file: what is done with each of them is what a loop by hand does, in the order of the mapping. An optimizer
is what has step, zero_grad, param_groups and state_dict; its class does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch.optim import Optimizer

from ..core.arguments import kind_of
from ..core.errors import WorkloadError


class OptimizerLike(Protocol):
    """What an optimizer is. To be restored from a checkpoint it has load_state_dict too."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def step(self) -> Callable[..., Any]: ...
    def zero_grad(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...


class JointOptimizer:
    """What one optimizer has, of several by name that are zeroed and stepped together.

    >>> import torch
    >>> weight, bias = torch.nn.Linear(3, 1).parameters()
    >>> both = JointOptimizer({"a": torch.optim.SGD([weight], lr=0.1), "b": torch.optim.Adam([bias], lr=0.01)})
    >>> [group["lr"] for group in both.param_groups], both["b"].param_groups[0]["lr"]
    ([0.1, 0.01], 0.01)

    Attributes:
        optimizers: by name, in the order in which they step.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self.optimizers = dict(optimizers)

    def __getitem__(self, name: str) -> Optimizer:
        return self.optimizers[name]

    def __repr__(self) -> str:
        return f"JointOptimizer({kinds_of(self)})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups of all optimizers, in their order; `add_param_group` of one of them adds to it."""
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    @property
    def state(self) -> Mapping[Any, Any]:
        """By parameter, what the optimizer that steps it keeps of it."""
        states = (getattr(optimizer, "state", {}) for optimizer in self.optimizers.values())
        return {parameter: kept for state in states for parameter, kept in state.items()}

    def step(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, group: dict[str, Any], *, optimizer: str | None = None) -> None:
        """Add a group to the optimizer of this name.

        Raises:
            WorkloadError: it is not said to which.
        """
        if optimizer is None:
            raise WorkloadError(
                f"this training has the optimizers {', '.join(self.optimizers)}: say which one gets the group, "
                f"work.optimizer[{next(iter(self.optimizers))!r}].add_param_group(…)"
            )
        self.optimizers[optimizer].add_param_group(group)

    def state_dict(self) -> dict[str, Any]:
        """By name, the state_dict of each."""
        return {"optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave.

        Raises:
            WorkloadError: it is of optimizers with other names.
        """
        for name, saved in saved_of_each(self, state_dict).items():
            self.optimizers[name].load_state_dict(dict(saved))


AnyOptimizer = Optimizer | JointOptimizer
"""What a training has as its optimizer."""


def each_of(optimizer: AnyOptimizer) -> Mapping[str, Optimizer]:
    """By name, those that step together; one optimizer alone has the name ""."""
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else {"": optimizer}


def named_optimizer(optimizer: AnyOptimizer, name: str) -> Optimizer:
    """The one of this name.

    Raises:
        WorkloadError: there is none.
    """
    there = each_of(optimizer)
    if not name or name not in there:
        raise WorkloadError(
            f"this training has no optimizer {name!r}: {_several(tuple(there), 'there are') or 'it has one alone'}"
        )
    return there[name]


def has_gradients(optimizer: AnyOptimizer) -> bool:
    """Whether one of its parameters has a gradient."""
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def saved_of_each(optimizer: AnyOptimizer, saved: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """By name, as in `each_of`, the state_dict of each, of what the `state_dict` of all gave.

    Raises:
        WorkloadError: it is of optimizers with other names.
    """
    there = saved["optimizers"] if isinstance(saved.get("optimizers"), Mapping) else {"": saved}
    if other := other_names(tuple(each_of(optimizer)), tuple(there)):
        raise WorkloadError(f"the optimizer is another one than was saved: {other}")
    return {name: there[name] for name in each_of(optimizer)}


def other_names(names: tuple[str, ...], saved: tuple[str, ...]) -> str:
    """How the optimizers of a training differ from those that were saved, by name and order; "" if they do not.

    >>> other_names(("muon", "adam"), ("muon", "adamw"))
    "there are several, 'muon' and 'adam', and there were several, 'muon' and 'adamw'"
    >>> other_names(("muon", "adamw"), ("",))
    "there are several, 'muon' and 'adamw', and there was one without a name"
    """
    if names == saved:
        return ""
    return f"there {_several(names) or 'is one without a name'}, and there {_several(saved, 'were') or _ONE}"


_ONE = "was one without a name"


def _several(names: tuple[str, ...], are: str = "are") -> str:
    return f"{are} several, {' and '.join(map(repr, names))}" if any(names) else ""


def kinds_of(optimizer: AnyOptimizer) -> str:
    """The classes, by name where there are several.

    >>> import torch
    >>> sgd = torch.optim.SGD(torch.nn.Linear(3, 1).parameters())
    >>> kinds_of(sgd), kinds_of(JointOptimizer({"slow": sgd}))
    ('SGD', 'slow: SGD')
    """
    return ", ".join(
        f"{name}: {type(each).__name__}" if name else type(each).__name__ for name, each in each_of(optimizer).items()
    )


def join(optimizer: Any) -> AnyOptimizer:
    """The optimizer as it is, or of a mapping one that steps all in it."""
    if isinstance(optimizer, JointOptimizer) or not isinstance(optimizer, Mapping):
        return optimizer
    return JointOptimizer(optimizer)


def check_joint(optimizers: Mapping[Any, Any]) -> None:
    """Refuse a mapping that cannot step together: its names, and parameters that two of them have.

    Raises:
        WorkloadError: with what to write instead.
    """
    if not optimizers:
        raise WorkloadError("optimizer is an empty mapping: give an optimizer, or several by name, {'adamw': …}")
    owner: dict[int, str] = {}
    for name, optimizer in optimizers.items():
        if not isinstance(name, str) or not name or "." in name:
            raise WorkloadError(
                f"optimizer has the name {name!r}, {kind_of(name)}: a name is a text without a dot, as 'muon', whose "
                "learning rate is called muon.lr"
            )
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if (other := owner.setdefault(id(parameter), name)) != name:
                raise WorkloadError(
                    f"a parameter of the shape {tuple(parameter.shape)} is stepped by {other!r} and by {name!r}: "
                    "give each parameter to one optimizer"
                )
