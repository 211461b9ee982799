"""What of the data changes while it is read, beside generators and the loader's own place.

A layer with `state_dict` and `load_state_dict` says its state itself. A sampler or loader without them has
its attributes. Of a dataset's attributes only those that changed are named: they may be handles and caches.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from .generators import is_generator
from .layers import Layer, attributes_of, layers_of, loaders_in

_logger = logging.getLogger("fsm_train")

_SCALARS = (bool, int, float, str, type(None))
_DEPTH = 4
"""So deep are lists in lists of a sampler saved."""
_TOLD = ("epoch", "_epoch")  # what set_epoch sets


def own_state(part: Any) -> Any:
    """The object's state_dict, copied; None if it has none, or one that only seems to be there.

    accelerate's loaders, for instance, have a `state_dict` that raises AttributeError unless it was asked for.
    """
    if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
        return None
    try:
        return copy.deepcopy(part.state_dict())
    except (AttributeError, NotImplementedError) as error:
        _logger.debug("the state_dict of the %s is not used: %s", type(part).__name__, error)
        return None


@attrs.frozen(eq=False)
class Sources:
    """The states of the layers of the training data at one moment.

    Attributes:
        own: by path, what `state_dict` gave.
        attributes: by path and name, the attributes of samplers and loaders without one.
        noticed: by path and name, the numbers and texts of datasets and transforms without one.
    """

    own: Mapping[str, Any]
    attributes: Mapping[str, Mapping[str, Any]]
    noticed: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def now(loader: object, layers: Sequence[Layer] | None = None) -> Sources:
        """The present states, copied. `layers` are the `changing_layers` of the loader, if they are known already."""
        if layers is None:
            layers = changing_layers(loader, layers_of(train=loader))
        if not layers:
            return _NO_SOURCES
        own: dict[str, Any] = {}
        attributes: dict[str, dict[str, Any]] = {}
        noticed: dict[str, dict[str, Any]] = {}
        loaders = loaders_in(loader)
        for layer in layers:
            state = None if layer.path in loaders else own_state(layer.part)
            if state is not None:
                own[layer.path] = state
            elif isinstance(layer.part, Sampler) or layer.path in loaders or _is_order(layer):
                attributes[layer.path] = dict(_plain(layer.part, everything=True))
            elif not isinstance(layer.part, DataLoader):
                noticed[layer.path] = {name: v for name, v in _plain(layer.part) if name not in _TOLD}
        return Sources(own, attributes, noticed)

    def since(self, other: Sources, start: Sources | None = None) -> Sources:
        """Only the attributes that differ from another moment, here or in `start`."""
        both = (self, start or self)
        return Sources(
            self.own,
            _changed(self.attributes, other.attributes, [sources.attributes for sources in both]),
            _changed(self.noticed, other.noticed, [sources.noticed for sources in both]),
        )

    def without_loader(self) -> Sources:
        """Only what is inside the loader: it saves its own place."""
        return attrs.evolve(self, attributes={path: v for path, v in self.attributes.items() if path != "train"})

    def without(self, paths: Container[str]) -> Sources:
        """Without what `state_dict` gave at these paths."""
        return attrs.evolve(self, own={path: state for path, state in self.own.items() if path not in paths})

    def put_back(self, loader: object) -> None:
        """Bring the layers of the loader to these states, where they are in others."""
        now = Sources.now(loader)
        for layer in changing_layers(loader, layers_of(train=loader)):
            path = layer.path
            if path in self.own and path in now.own and not same(self.own[path], now.own[path]):
                layer.part.load_state_dict(copy.deepcopy(self.own[path]))
            for name, value in self.attributes.get(path, {}).items():
                if not same(value, now.attributes.get(path, {}).get(name)):
                    own = copy.deepcopy(value)
                    if isinstance(own, torch.Tensor) and _is_array(attributes_of(layer.part).get(name)):
                        own = own.numpy()
                    object.__setattr__(layer.part, name, own)

    def changed_outside(self) -> tuple[str, ...]:
        """What changed and cannot be saved, since it may be a handle or a cache: each as a path and a name."""
        return tuple(f"{path}.{name}" for path, values in self.noticed.items() for name in values)

    def plain(self) -> dict[str, Any]:
        """These states as tensors and plain values."""
        return {"own": dict(self.own), "attributes": {path: dict(values) for path, values in self.attributes.items()}}

    @staticmethod
    def from_plain(parts: Mapping[str, Any]) -> Sources:
        """The inverse of `plain`."""
        return Sources(parts["own"], parts["attributes"], {})


_NO_SOURCES = Sources({}, {}, {})


def changing_layers(loader: object, layers: Iterable[Layer]) -> list[Layer]:
    """Those of these layers whose state may change by other means than a generator and `set_epoch`.

    A loader of torchdata saves what is in it, and one inside of another loader that saves its place is saved there.
    """
    loaders = loaders_in(loader)
    complete = [path for path, part in loaders.items() if _saves_all(part)]
    changing = []
    for layer in layers:
        part = layer.part
        if any(layer.path == path or layer.path.startswith(f"{path}.") for path in complete):
            continue
        if layer.path in loaders and part is not loader and hasattr(part, "load_state_dict"):
            continue
        if isinstance(part, (nn.Module, list, tuple, dict)) or is_generator(part) or not hasattr(part, "__dict__"):
            continue
        if isinstance(part, (FunctionType, MethodType, partial)):
            continue
        if isinstance(part, Sampler) and type(part).__module__.startswith("torch.utils.data"):
            continue  # these change nothing but generators
        changing.append(layer)
    return changing


def _saves_all(loader: object) -> bool:
    return type(loader).__module__.partition(".")[0] == "torchdata"


def _is_order(layer: Layer) -> bool:
    """Whether this is a loader of one's own, or what stands in the place of a sampler."""
    if isinstance(layer.part, (Dataset, DataLoader)):
        return isinstance(layer.part, DataLoader)
    return layer.path == "train" or layer.path.endswith(("sampler", "sampler.sampler"))


def _plain(part: object, *, everything: bool = False) -> Iterator[tuple[str, Any]]:
    """The attributes that are numbers and texts; or also lists and tensors of them, and what else a sampler has."""
    is_sampler = isinstance(part, Sampler)
    for name, value in attributes_of(part).items():
        kind = type(value)
        if kind in _SCALARS:
            yield name, value
        elif everything and kind is torch.Tensor:
            yield name, value.detach().clone()
        elif everything and kind in (list, tuple, set) and set(map(type, value)) <= set(_SCALARS):
            yield name, copy.copy(value)
        elif everything and is_sampler and _is_array(value):
            yield name, torch.from_numpy(value.copy())
        elif everything and is_sampler and (own := _nested(value)) is not None:
            yield name, own


def _is_array(value: object) -> bool:
    """Whether it is an array of numbers, as an order is one, which is a tensor where it is saved."""
    array: Any = value
    kind: Any = type(value)
    if (kind.__module__, kind.__name__) != ("numpy", "ndarray"):
        return False
    return array.dtype.kind in "biuf" and array.dtype.itemsize <= 8 and array.dtype.isnative


def _nested(value: Any, depth: int = _DEPTH) -> Any:
    """A copy of lists, tuples and dicts of numbers and texts, as of the batches of a sampler; None of all else."""
    kind = type(value)
    if kind in (list, tuple):
        if set(map(type, value)) <= set(_SCALARS):
            return copy.copy(value)
        parts = [None if depth == 0 else _nested(part, depth - 1) for part in value if type(part) not in _SCALARS]
        if any(part is None for part in parts):
            return None
        copies = iter(parts)
        return kind(part if type(part) in _SCALARS else next(copies) for part in value)
    if kind is dict and set(map(type, value)) <= {str, int}:
        parts = _nested([*value.values()], depth)
        return None if parts is None else dict(zip(value, parts, strict=True))
    return None


def _changed(
    now: Mapping[str, Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]], both: list[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path, values in now.items():
        was = before.get(path, {})
        # What was None has been made since: a handle, a length.
        names = [
            name
            for name in values
            if was.get(name) is not None and any(not same(m.get(path, {}).get(name), was[name]) for m in both)
        ]
        if names:
            found[path] = {name: values[name] for name in names}
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal: values, types, and tensors to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        if len(one) > 0 and set(map(type, one)) <= set(_SCALARS):
            return bool(one == other)
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "dtype") and hasattr(one, "tobytes"):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return bool(one == other or (one != one and other != other))  # NaN is itself
