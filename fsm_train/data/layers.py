"""The layers of training data: the loader, its samplers, the dataset, and what these hold.

Rule of this file: it only looks. No layer is iterated, indexed or called.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import PurePath
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..core.workload import Workload
from .compiled import is_compiled, named_modules

LARGEST = 64  # items: a longer list, or a larger mapping, holds samples
MOST = 5000  # layers: beyond that it is a dataset's index that is walked through

_ATOMS = (str, bytes, int, float, complex, type(None), type, ModuleType, PurePath, torch.Tensor, torch.dtype)
_FOREIGN = {
    "multiprocessing",
    "threading",
    "queue",
    "logging",
    "io",
    "_io",
    "weakref",
    "_weakref",
    "concurrent",
    "pyarrow",
}
_BOUND = (MethodType, BuiltinMethodType)
_BY_NAME = ("generator", "sampler", "batch_sampler", "dataset", "collate_fn", "worker_init_fn")


class Combined:
    """A loader made of other loaders. They and its settings are layers; the pass under way, in a `_name`, is none.

    Attributes:
        loaders: what it reads from.
    """

    loaders: tuple[Any, ...]


def loaders_in(loader: object, path: str = "train") -> dict[str, Any]:
    """By path, a loader and those that it is made of.

    >>> [*loaders_in([1, 2])]
    ['train']
    """
    found = {path: loader}
    if isinstance(loader, Combined):
        for i, inner in enumerate(loader.loaders):
            found |= loaders_in(inner, f"{path}.loaders[{i}]")
    return found


@attrs.frozen(eq=False)
class Layer:
    """An object that is reached from a loader.

    Attributes:
        path: the attributes that lead to it, such as "train.sampler.generator".
        part: the object.
    """

    path: str
    part: Any


def layers_of(**roots: object) -> list[Layer]:
    """The objects that can be reached from these, each once, the outer ones first.

    >>> [layer.path for layer in layers_of(train=DataLoader([1.0, 2.0]))]
    ['train', 'train.sampler', 'train.batch_sampler', 'train.dataset', 'train.collate_fn']

    Long lists, tuples of numbers or tensors, tensors and what belongs to the operating system are no layers.
    """
    found: list[Layer] = []
    to_visit = deque[Layer]()
    for name, part in roots.items():
        kind: Any = type(part)
        if _can_be_layer(kind):
            to_visit.append(Layer(name, part))
    seen: set[int] = set()
    while to_visit and len(found) < MOST:
        layer = to_visit.popleft()
        if id(layer.part) in seen:
            continue
        seen.add(id(layer.part))
        found.append(layer)
        to_visit.extend(
            Layer(f"{layer.path}{name}", part)
            for name, part in children_of(layer.part)
            if is_layer(part) and id(part) not in seen
        )
    return found


def is_layer(part: object) -> bool:
    """Whether an object that is held is a layer. A tuple of numbers or of tensors is none: often it is one of many."""
    kind: Any = type(part)
    if kind is tuple:
        items: Any = part
        return len(items) <= LARGEST and any(map(_can_be_layer, map(type, items)))
    return _can_be_layer(kind)


@functools.lru_cache(maxsize=1024)
def _can_be_layer(kind: Any) -> bool:
    return not issubclass(kind, _ATOMS) and kind.__module__.partition(".")[0] not in _FOREIGN


def children_of(part: Any) -> Iterator[tuple[str, Any]]:
    """What this object holds, with the text that follows its path."""
    if isinstance(part, (list, tuple)):
        kind: Any = list if isinstance(part, list) else tuple  # an __iter__ of a subclass begins a pass over data
        if kind.__len__(part) <= LARGEST:
            yield from ((f"[{i}]", value) for i, value in enumerate(kind.__iter__(part)))
        yield from ((f".{name}", value) for name, value in getattr(part, "__dict__", {}).items())
    elif isinstance(part, dict):
        if dict.__len__(part) <= LARGEST:  # a subclass may have methods of its own
            yield from ((f"[{key!r:.40}]", value) for key, value in dict.items(part))
        yield from ((f".{name}", value) for name, value in getattr(part, "__dict__", {}).items())
    elif isinstance(part, deque):
        if deque.__len__(part) <= LARGEST:
            yield from ((f"[{i}]", value) for i, value in enumerate(deque.__iter__(part)))
    elif isinstance(part, (torch.Generator, torch.optim.Optimizer)) or Workload in type(part).__mro__:
        return
    elif isinstance(part, _BOUND):
        yield "", part.__self__
    elif isinstance(part, functools.partial):
        yield from ((".func", part.func), (".args", part.args), (".keywords", part.keywords))
    elif isinstance(part, FunctionType):
        yield from _held_by_function(part)
    elif isinstance(part, nn.Module):
        for name, module in named_modules(part):
            if is_compiled(module):
                continue  # what torch.compile holds is no part of the model
            inner = f".{name}" if name else ""
            yield from ((f"{inner}.{key}", vars(module)[key]) for key in names_in_module(module))
    else:
        yield from ((f".{name}", value) for name, value in attributes_of(part).items())


def names_in_module(module: nn.Module) -> list[str]:
    """The names of the attributes of a module that are searched: not those of torch's own machinery."""
    of_torch = type(module).__module__.partition(".")[0] == "torch"
    return [name for name in vars(module) if not name.startswith("_") or not (of_torch or name in _of_a_module())]


@functools.cache
def _of_a_module() -> frozenset[str]:
    return frozenset(vars(nn.Module()))


def holders_of(part: Any) -> Iterator[Any]:
    """The dicts, lists, deques and cells that the children of this object are read from, or itself if it has slots.

    While these hold the same, the object has the same children. A tuple always does.
    """
    if isinstance(part, (list, tuple)):
        if isinstance(part, list):
            yield part
        if hasattr(part, "__dict__"):
            yield part.__dict__
    elif isinstance(part, dict):
        yield part
        if hasattr(part, "__dict__"):
            yield part.__dict__
    elif isinstance(part, deque):
        yield part
    elif isinstance(part, FunctionType):
        yield from part.__closure__ or ()
        yield from (part.__kwdefaults__ or {}, part.__dict__)
    elif isinstance(part, nn.Module):
        for module in part.modules():
            yield from (vars(module), module._modules)
    elif not isinstance(part, (torch.Generator, torch.optim.Optimizer, *_BOUND, functools.partial)):
        if hasattr(part, "__dict__"):
            yield part.__dict__
        if slots_of(part):
            yield part


def slots_of(part: object) -> tuple[str, ...]:
    """The names of the slots of an object, those of all its classes."""
    kind: Any = type(part)
    return _slots_of(kind)


@functools.lru_cache(maxsize=1024)
def _slots_of(kind: Any) -> tuple[str, ...]:
    own = [(base.__name__.lstrip("_"), base.__dict__.get("__slots__", ())) for base in kind.__mro__]
    names = ((of, name) for of, slots in own for name in ((slots,) if isinstance(slots, str) else slots))
    # What begins with two underscores is named by its class.
    names = ((of, name) for of, name in names if name not in ("__dict__", "__weakref__"))
    return tuple(f"_{of}{name}" if name.startswith("__") and not name.endswith("__") else name for of, name in names)


def _held_by_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function closes over, what its arguments are by default, and its attributes."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # the variable has no value yet
            continue
    code, defaults = function.__code__, function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount]
    named = zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
    by_name = (function.__kwdefaults__ or {}).items()
    yield from ((f".{name}", value) for name, value in chain(named, by_name, function.__dict__.items()))


def attributes_of(part: object) -> dict[str, Any]:
    """The attributes of an object by name; of a DataLoader those that say what is read, and a subclass's own."""
    values = dict(getattr(part, "__dict__", {}))
    for name in slots_of(part):
        if hasattr(part, name):
            values[name] = getattr(part, name)
    if isinstance(part, DataLoader):
        own = values.keys() - _of_a_loader()
        first = {name: values[name] for name in _BY_NAME if name in values}
        return first | {name: value for name, value in values.items() if name in own}
    if isinstance(part, Combined):
        return {name: value for name, value in values.items() if not name.startswith("_")}
    return values


@functools.cache
def _of_a_loader() -> frozenset[str]:
    """The attributes that each DataLoader has. None of these loaders is iterated."""
    map_style, stream = DataLoader([0]), DataLoader(_Stream())  # type: ignore[arg-type, var-annotated]
    return frozenset(vars(map_style).keys() | vars(stream).keys())


class _Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def set_epoch(loader: object, epoch: int, layers: Iterable[Layer] | None = None) -> bool:
    """Tell each layer of the loader that has `set_epoch` which epoch begins: once each, the inner ones first.

    Layers are the loader, its sampler and batch sampler with those inside, the dataset, and what
    they wrap. One that passes the number on to an inner one has the last word there.

    Args:
        loader: of the training data.
        epoch: its index, from 0.
        layers: those of the loader, if they are known already.

    Returns:
        Whether one was told, which may have changed what it holds.
    """
    methods: dict[int, Any] = {}
    for layer in layers_of(train=loader) if layers is None else layers:
        method = getattr(layer.part, "set_epoch", None)
        if callable(method) and not isinstance(layer.part, type):
            methods.setdefault(id(getattr(method, "__self__", layer.part)), method)
    for method in reversed(methods.values()):
        method(epoch)
    return bool(methods)
