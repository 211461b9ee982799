"""The state of an optimizer, loaded as it was saved.

`Optimizer.load_state_dict` casts each tensor of the state to the dtype of its parameter: float32 averages and
master weights of a bfloat16 parameter become bfloat16, integer counters become floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch

from ..core.arguments import kind_of
from .joint_optimizer import AnyOptimizer, each_of, saved_of_each
from .param_groups import load_optimizer


def load_exactly(optimizer: AnyOptimizer, saved: Mapping[str, Any]) -> None:
    """Load what `optimizer.state_dict()` gave, each tensor with the dtype that it had.

    The optimizer's own `load_state_dict` and hooks do the work. Only what torch has cast to the dtype of the
    parameter is replaced. The optimizer keeps the tensors that it is given.

    Raises:
        WorkloadError: it is of several optimizers with other names, or an optimizer cannot load it.
    """
    of_each = saved_of_each(optimizer, saved)
    for name, each in each_of(optimizer).items():
        _load_one(each, of_each[name])


def _load_one(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    load_optimizer(optimizer, dict(saved))
    states, groups = saved.get("state"), saved.get("param_groups")
    if not isinstance(states, Mapping) or not groups:
        return
    keys = chain.from_iterable(group["params"] for group in groups)
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, parameter in zip(keys, parameters, strict=False):
        if key in states and parameter in getattr(optimizer, "state", ()):
            optimizer.state[parameter] = _uncast(optimizer.state[parameter], states[key], parameter.dtype)


def unsaved_within(optimizer: AnyOptimizer, saved: Mapping[str, Any], extra: Iterable[object]) -> Iterator[str]:
    """A note for each optimizer within an optimizer whose state is not in the state_dict, as in published forms of SAM.

    Args:
        optimizer: of the training.
        saved: its state_dict.
        extra: what is saved beside it.
    """
    known = {id(part) for part in (*each_of(optimizer).values(), *extra)}
    there: set[int] | None = None
    for each in each_of(optimizer).values():
        for name, inner in getattr(each, "__dict__", {}).items():
            if not isinstance(inner, torch.optim.Optimizer) or id(inner) in known:
                continue
            there = {*_tensors(saved)} if there is None else there
            if not there.issuperset(_tensors(inner.state)):
                yield (
                    f"the {name} of the {type(each).__name__}, {kind_of(inner)}: its state is not in the state_dict of "
                    f"the optimizer; give the workload extra={{{name!r}: optimizer.{name}}}"
                )


def _tensors(state: Any) -> Iterator[int]:
    """The ids of the tensors in a state."""
    if isinstance(state, torch.Tensor):
        yield id(state)
    elif isinstance(state, (Mapping, list, tuple)):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(part)


def _uncast(loaded: Any, saved: Any, dtype: torch.dtype) -> Any:
    """The loaded state, with those tensors as saved that were cast to this dtype."""
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        cast = loaded.dtype == dtype != saved.dtype and loaded.shape == saved.shape
        return saved.to(loaded.device) if cast else loaded
    if isinstance(loaded, dict) and isinstance(saved, Mapping):
        for name in loaded.keys() & saved.keys():
            loaded[name] = _uncast(loaded[name], saved[name], dtype)
    elif type(loaded) in (list, tuple) and type(saved) in (list, tuple) and len(loaded) == len(saved):
        return type(loaded)(_uncast(*pair, dtype) for pair in zip(loaded, saved, strict=True))
    return loaded
