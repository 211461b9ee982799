"""The state of an object as tensors and plain values, and back into an object that was made the same way.

A metric has no common way to save what it collected: torchmetrics saves what is persistent, and of a metric
inside another one nothing. So the attributes themselves are saved. Nothing here runs code from a file: what
is restored is put into the objects that are there, and never makes one of a class.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Mapping
from functools import partial
from logging import Logger
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..core.errors import WorkloadError
from ..data.generators import is_generator, plain_state, set_state, state_from, state_of
from ..data.layers import attributes_of

_VALUES = (type(None), bool, int, float, complex, str, bytes)
_SEQUENCES = (list, tuple, set, deque)
_MAPPINGS = (dict, OrderedDict, Counter, defaultdict)
_CONSTANTS = (
    *(FunctionType, BuiltinFunctionType, MethodType, ModuleType, partial, type, enum.Enum, PurePath, re.Pattern),
    *(Logger, inspect.Signature, torch.device, torch.dtype, torch.Size, torch.optim.Optimizer, DataLoader, Dataset),
)
"""What does not change while a metric collects, or is not the metric's own."""

_CONSTANT = ["constant"]


class Saver:
    """Makes plain values of an object.

    Attributes:
        shared: the ids of objects that others save.
        unsaved: what could not be saved, each as a path with its type.
    """

    def __init__(self, shared: Collection[int] = ()) -> None:
        self.shared = shared
        self.unsaved: list[str] = []
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []  # so that no id is used twice

    def save(self, value: Any, path: str = "") -> Any:
        """The value as tensors and plain values; objects that occur twice are the same one after `restored`."""
        kind = type(value)
        if kind in _VALUES:
            return value
        if id(value) in self.shared or isinstance(value, _CONSTANTS):
            return _CONSTANT
        if id(value) in self._seen:
            return ["same", self._seen[id(value)]]
        number = self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, torch.Tensor):
            return ["tensor", number, value.detach(), value.device.type == "cpu"]
        if kind in _SEQUENCES:
            return ["items", number, [self.save(part, f"{path}[{i}]") for i, part in enumerate(value)]]
        if kind in _MAPPINGS:
            pairs = [[self.save(key), self.save(part, f"{path}[{key!r}]")] for key, part in value.items()]
            return ["pairs", number, pairs]
        if is_generator(value):
            return ["generator", number, plain_state(state_of(value))]
        if kind.__module__ == "numpy" and hasattr(value, "dtype") and value.dtype.kind in "biuf":
            data = torch.tensor(list(value.tobytes()), dtype=torch.uint8)
            return ["array", number, str(value.dtype), list(value.shape), data]
        attributes = attributes_of(value)
        if not attributes and not hasattr(value, "__dict__"):
            self.unsaved.append(f"{path.lstrip('.')} ({kind.__name__})")
            return _CONSTANT
        parts = {name: self.save(part, f"{path}.{name}") for name, part in attributes.items()}
        return ["object", number, kind.__qualname__, parts]


class Restorer:
    """Puts what a `Saver` made into an object that was made the same way.

    Attributes:
        device: where tensors belong that were on a device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._restored: dict[int, Any] = {}

    def restored(self, live: Any, saved: Any, path: str = "") -> Any:
        """The saved value, in the place of the live one, and where possible the live one itself.

        Raises:
            WorkloadError: the object is of another structure.
        """
        if not isinstance(saved, list):
            return saved
        kind, *rest = saved
        if kind == "constant":
            if live is None:
                raise WorkloadError(f"{path.lstrip('.') or 'it'} is not there")
            return live
        if kind == "same":
            return self._restored[rest[0]]
        number, *parts = rest
        value = getattr(self, f"_{kind}")(live, number, path, *parts)
        self._restored[number] = value
        return value

    def _tensor(self, live: Any, number: int, path: str, saved: torch.Tensor, on_cpu: bool) -> torch.Tensor:
        if isinstance(live, nn.Parameter):
            if live.shape != saved.shape:
                raise WorkloadError(f"{path.lstrip('.')} has another shape")
            live.data.copy_(saved)
            return live
        return saved.to("cpu" if on_cpu else self.device, copy=True)

    def _array(self, live: Any, number: int, path: str, dtype: str, shape: list[int], data: torch.Tensor) -> Any:
        import numpy as np

        found = np.frombuffer(data.numpy().tobytes(), dtype=dtype).reshape(shape).copy()
        return found if shape or isinstance(live, np.ndarray) else found[()]

    def _items(self, live: Any, number: int, path: str, items: list[Any]) -> Any:
        if not isinstance(live, _SEQUENCES):
            live = []
        if not isinstance(live, tuple):
            self._restored[number] = live
        olds = list(live) if not isinstance(live, set) else []
        values = [
            self.restored(olds[i] if i < len(olds) else None, item, f"{path}[{i}]") for i, item in enumerate(items)
        ]
        if isinstance(live, tuple):
            return tuple(values)
        live.clear()
        live.update(values) if isinstance(live, set) else live.extend(values)
        return live

    def _pairs(self, live: Any, number: int, path: str, pairs: list[Any]) -> Any:
        if not isinstance(live, _MAPPINGS):
            live = {}
        self._restored[number] = live
        olds = dict(live)
        live.clear()
        for saved_key, part in pairs:
            key = self.restored(None, saved_key)
            live[key] = self.restored(olds.get(key), part, f"{path}[{key!r}]")
        return live

    def _generator(self, live: Any, number: int, path: str, state: Any) -> Any:
        if not is_generator(live):
            raise WorkloadError(f"{path.lstrip('.')} is no generator")
        set_state(live, state_from(state))
        return live

    def _object(self, live: Any, number: int, path: str, kind: str, parts: Mapping[str, Any]) -> Any:
        if type(live).__qualname__ != kind:
            raise WorkloadError(f"{path.lstrip('.') or 'it'} is a {type(live).__qualname__}, and was a {kind}")
        self._restored[number] = live
        attributes = attributes_of(live)
        for name, part in parts.items():
            value = self.restored(attributes.get(name), part, f"{path}.{name}")
            if value is not attributes.get(name):
                object.__setattr__(live, name, value)
        return live
