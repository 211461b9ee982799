"""The state of an optimizer, loaded as it was saved.

`Optimizer.load_state_dict` casts each tensor of the state to the dtype of its parameter: float32 averages and
master weights of a bfloat16 parameter become bfloat16, integer counters become floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from .param_groups import load_optimizer


def load_exactly(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load what `optimizer.state_dict()` gave, each tensor with the dtype that it had.

    The optimizer's own `load_state_dict` and hooks do the work. Only what torch has cast to the dtype of the
    parameter is replaced. The optimizer keeps the tensors that it is given.
    """
    load_optimizer(optimizer, dict(saved))
    states, groups = saved.get("state"), saved.get("param_groups")
    if not isinstance(states, Mapping) or not groups:
        return
    keys = chain.from_iterable(group["params"] for group in groups)
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, parameter in zip(keys, parameters, strict=False):
        if key in states and parameter in optimizer.state:
            optimizer.state[parameter] = _uncast(optimizer.state[parameter], states[key], parameter.dtype)


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


def without_marks(state: Any) -> Any:
    """The state, nested as it is, with tensors that torch.compile has marked replaced by ones that share their memory.

    A compiled step gives the tensors of its optimizer attributes, with which they could not be loaded without code.
    """
    if isinstance(state, torch.Tensor):
        marks = vars(state)
        return state.detach() if marks and all(name.startswith("_dynamo") for name in marks) else state
    if type(state) is dict:
        return {key: without_marks(value) for key, value in state.items()}
    return [without_marks(value) for value in state] if type(state) is list else state
