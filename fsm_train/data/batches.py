"""Batches: which loaders are accepted, and how a batch is split, counted, compared and copied to the device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from ..core.arguments import kind_of
from ..core.errors import NoBatchError, WorkloadError
from .sharded import share_of

Split = Callable[[Any], tuple[Any, Any]]
Forward = Callable[..., Any]


def check_loader(loader: object, which: str) -> Iterable[Any]:
    """The loader, if each epoch can start a new pass over it.

    It is not iterated here: even making the iterator of a DataLoader draws random numbers.

    Raises:
        WorkloadError: it is an iterator, empty, gives samples and not batches, or cannot be iterated.
        NoBatchError: it says that it is empty.
    """
    if (samples_of := _gives_samples(loader, which)) is not None:
        raise WorkloadError(samples_of)
    if isinstance(loader, Iterator):
        raise WorkloadError(
            f"{which} is an iterator ({type(loader).__name__}), which would be empty in the second epoch: "
            "pass the DataLoader, the list, or an object whose __iter__ starts a new pass"
        )
    if not hasattr(loader, "__iter__"):
        raise WorkloadError(
            f"{which} is {kind_of(loader)}, but batches are to come from it: pass a DataLoader or a list"
        )
    if is_empty(loader):
        raise NoBatchError(
            f"{which} has no batches: is the dataset empty, or smaller than one batch with drop_last=True?"
        )
    return loader


def _gives_samples(loader: object, which: str) -> str | None:
    """The sentence that refuses what gives single samples, or what may; None for a loader."""
    kind = type(loader).__name__
    shuffle = ", shuffle=True" if which == "train" else ""
    if isinstance(loader, torch.Tensor) or (hasattr(loader, "shape") and hasattr(loader, "dtype")):
        return (
            f"{which} is a {kind}, which gives its rows one by one: "
            f"pass DataLoader(TensorDataset(inputs, target), batch_size=32{shuffle})"
        )
    if isinstance(loader, Mapping):
        return (
            f"{which} is a {kind}, which gives its keys and not batches: "
            f"pass DataLoader(…, batch_size=32{shuffle}), or a list of batches"
        )
    if is_map_style(loader):
        return (
            f"{which} is a dataset ({kind}), which gives one sample at a time, but batches are to come from it: pass "
            f"DataLoader({which}_data, batch_size=32{shuffle}), or DataLoader({which}_data, batch_size=None) if each "
            "item is a batch already"
        )
    return None


def is_map_style(loader: object) -> bool:
    """Whether it is a dataset read by index: one of torch, one with `__getitems__`, or one without `__iter__`."""
    if isinstance(loader, IterableDataset):
        return False
    if isinstance(loader, Dataset):
        return type(loader).__getitem__ is not Dataset.__getitem__ or not hasattr(loader, "__iter__")
    if not hasattr(loader, "__getitem__"):
        return False
    return hasattr(loader, "__getitems__") or not hasattr(loader, "__iter__")


def number_of_batches(loader: object) -> int | None:
    """The length of the loader; None if it has none, as a DataLoader over an IterableDataset."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def is_empty(loader: object) -> bool:
    """Whether the loader says that it has no batch. The share of one rank may have none where others have."""
    share = share_of(loader)
    return number_of_batches(loader if share is None else share.union) == 0


def drops_last(loader: object) -> bool:
    """Whether the loader leaves out a last batch that is smaller than the others."""
    share = share_of(loader)
    batches = getattr(loader, "batch_sampler", None) if share is None else share.union
    return getattr(batches, "drop_last", False) is True


def pair(batch: Any) -> tuple[Any, Any]:
    """The (inputs, target) of a batch that is such a pair.

    Raises:
        WorkloadError: it is something else.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        found = f"a mapping with the keys {', '.join(map(repr, batch))}"
        advice = "split=lambda batch: (batch['…'], batch['…'])"
    elif isinstance(batch, (tuple, list)):
        found = f"a {type(batch).__name__} of {len(batch)}"
        advice = "split=lambda batch: (batch[:-1], batch[-1])"
    elif (fields := fields_of(batch)) is not None:
        found = f"a {type(batch).__name__} with the fields {', '.join(fields)}"
        advice = "split=lambda batch: (batch.…, batch.…)"
    elif moves_itself(batch):
        found, advice = f"a {type(batch).__name__}", "split=lambda batch: (batch, batch.…)"
    else:
        found, advice = f"a {type(batch).__name__}", "split=…"
    raise WorkloadError(f"a batch is to be a pair (inputs, target), but the loader gave {found}: pass {advice}")


def fields_of(value: object) -> dict[str, Any] | None:
    """The fields of an attrs record or a dataclass by name; None of anything else.

    >>> @attrs.frozen
    ... class Point:
    ...     x: float
    >>> fields_of(Point(1.0)), fields_of([1.0])
    ({'x': 1.0}, None)
    """
    kind = type(value)
    if attrs.has(kind):
        names = [field.name for field in attrs.fields(kind)]
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    else:
        return None
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def moves_itself(value: object) -> bool:
    """Whether it is an object with a `to(device)` of its own, which knows what of it is to be moved."""
    return not isinstance(value, (torch.Tensor, type)) and callable(getattr(value, "to", None))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists, mappings and records."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    else:
        yield from tensors([*(fields_of(value) or {}).values()])


def holds_hidden_tensors(value: Any) -> bool:
    """Whether something in it moves itself, so that not all of its tensors need be among `tensors(value)`."""
    if isinstance(value, torch.Tensor):
        return False
    if moves_itself(value):
        return True
    if isinstance(value, Mapping):
        return any(map(holds_hidden_tensors, value.values()))
    parts = value if isinstance(value, (tuple, list)) else (fields_of(value) or {}).values()
    return any(map(holds_hidden_tensors, parts))


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with `change` of each tensor, in nested tuples, lists, mappings and records; all else is passed on."""
    return change(value) if isinstance(value, torch.Tensor) else _with_parts(value, lambda p: map_tensors(p, change))


def _with_parts(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a tuple, list, mapping or record with `change` of each of its parts; any other value itself."""
    if isinstance(value, Mapping):
        changed = {key: change(part) for key, part in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return changed
        same = copy.copy(value)  # a model's output, say, that is a mapping and more
        for key, part in changed.items():
            same[key] = part
        return same
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(change, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(change, value))
    if (fields := fields_of(value)) is None:
        return value
    changed = {name: new for name, part in fields.items() if (new := change(part)) is not part}
    if not changed:
        return value
    same = copy.copy(value)
    for name, part in changed.items():
        object.__setattr__(same, name, part)  # a frozen one too: nobody else has this copy yet
    return same


def structure(value: Any) -> Any:
    """All of a batch but the values of its tensors: nesting, shapes, types, devices, other values. Compare with `==`.

    Raises:
        TypeError: the value holds an object that may have tensors inside.
    """
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, Mapping):
        return {key: structure(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value), [structure(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if (fields := fields_of(value)) is not None and not moves_itself(value):
        return type(value), structure(fields)
    raise TypeError(f"the batch holds a {type(value).__name__}, which may have tensors in it")


def to_device(value: Any, device: torch.device) -> Any:
    """The value on the device: its tensors, and what has a `to` of its own, wherever they stand in it.

    They are looked for in tuples, lists, mappings, attrs records and dataclasses. What stands in it twice is moved
    once, and is one object there too. A copy from pinned memory is not waited for.

    Raises:
        WorkloadError: an object's `to` returns nothing.
    """
    moved: dict[int, tuple[Any, Any]] = {}  # with the part itself, as the id of one that is gone is given again

    def move(part: Any) -> Any:
        if id(part) not in moved:
            moved[id(part)] = part, _moved(part)
        return moved[id(part)][1]

    def _moved(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return part.to(device, non_blocking=part.is_pinned())
        if not moves_itself(part):
            return _with_parts(part, move)
        if (answer := part.to(device)) is None:
            raise WorkloadError(f"the `to` of a {type(part).__name__} returned None: it is to return what was moved")
        return answer

    return move(value)


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a tuple or list of inputs is passed by position, a mapping by keyword.

    What moves itself and is no mapping is one argument, also if it is a tuple, as a PackedSequence is.
    """
    if isinstance(inputs, torch.Tensor):
        return model(inputs)
    if isinstance(inputs, (tuple, list)) and not moves_itself(inputs):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


def apply_split(batch: Any, split: Split) -> tuple[Any, Any]:
    """The pair (inputs, target) that the user's `split` returns for a batch.

    Raises:
        WorkloadError: it returns something else.
    """
    parts = split(batch)
    if not isinstance(parts, tuple) or len(parts) != 2:
        raise WorkloadError(f"split returned a {type(parts).__name__}, but it is to return the pair (inputs, target)")
    return parts


def in_words(value: object) -> str:
    """What a value is, with the shape and type of a tensor or an array.

    >>> in_words(torch.zeros(2, 3)), in_words(None), in_words([1])
    ('a float32 tensor of shape (2, 3)', 'None', 'a list of 1')
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(value, torch.Tensor):
        return f"a {str(dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if shape is not None and dtype is not None and not isinstance(value, type):
        return f"a {dtype} {type(value).__name__} of shape {tuple(shape)}"
    if isinstance(value, (list, tuple, Mapping)):
        return f"{kind_of(value)} of {len(value)}"
    return kind_of(value)


def check_scalar(loss: object) -> None:
    """Refuse a loss that is no scalar tensor.

    Raises:
        WorkloadError: with what it is.
    """
    if loss is None:
        raise WorkloadError("loss_fn returned None: it is to return a scalar tensor. Is its `return` missing?")
    if not isinstance(loss, torch.Tensor):
        raise WorkloadError(f"loss_fn returned a {type(loss).__name__}, {loss!r:.40}: it is to return a scalar tensor")
    if loss.dim() != 0:
        raise WorkloadError(
            f"loss_fn returned a tensor of shape {tuple(loss.shape)}, but a loss is a scalar: "
            "take its mean (reduction='mean')"
        )


def check_loss(loss: object) -> None:
    """Refuse a loss that has no backward.

    Raises:
        WorkloadError: it is no scalar tensor, or requires no gradient.
    """
    check_scalar(loss)
    assert isinstance(loss, torch.Tensor)
    if not (loss.is_floating_point() or loss.is_complex()):
        raise WorkloadError(f"loss_fn returned {in_words(loss)}: whole numbers have no gradient, a loss is a float")
    if not loss.requires_grad:
        raise WorkloadError(
            "the loss has no gradient: are all parameters frozen, or is something detached or in no_grad "
            "on the way from the model to the loss?"
        )
