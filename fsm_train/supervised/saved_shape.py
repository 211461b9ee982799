"""What the parts in a checkpoint look like: checked before anything of a training is replaced.

Rule of this file: it looks, and changes nothing. The digests of a checkpoint say that it is as it was written; this
says that it was written by a training, and not by somebody who made the digests fit again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..core.checks import is_number
from ..core.errors import CheckpointError

Fits = Callable[[Any], bool]


def _is(*types: type) -> Fits:
    return lambda value: isinstance(value, types)


_text, _number = _is(str), _is(int)


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _anything(value: Any) -> bool:
    return True


def _optional(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _either(*several: Fits) -> Fits:
    return lambda value: any(fits(value) for fits in several)


def _both(one: Fits, other: Fits) -> Fits:
    return lambda value: one(value) and other(value)


def _mapping(fits: Fits, keys: Fits = _text) -> Fits:
    return lambda value: isinstance(value, Mapping) and all(keys(k) and fits(v) for k, v in value.items())


def _list(fits: Fits, length: int | None = None) -> Fits:
    return lambda value: (
        isinstance(value, (list, tuple)) and length in (None, len(value)) and all(fits(item) for item in value)
    )


def _items(*each: Fits) -> Fits:
    return lambda value: (
        isinstance(value, (list, tuple))
        and len(value) == len(each)
        and all(fits(item) for fits, item in zip(each, value, strict=True))
    )


def _record(required: Mapping[str, Fits], **optional: Fits) -> Fits:
    return lambda value: (
        isinstance(value, Mapping)
        and required.keys() <= value.keys()
        and all(fits(value[name]) for name, fits in required.items())
        and all(fits(value[name]) for name, fits in optional.items() if name in value)
    )


def _python_state(value: Any) -> bool:
    if not _items(_is(int), _tensor, _optional(is_number))(value):
        return False
    version, internal, gauss = value
    return _accepted(lambda: random.Random(0).setstate((version, tuple(internal.tolist()), gauss)))


def _torch_state(value: Any) -> bool:
    return _tensor(value) and _accepted(lambda: torch.Generator().set_state(value))


def _accepted(use: Callable[[], object]) -> bool:
    try:
        use()
    except (RuntimeError, TypeError, ValueError, OverflowError):
        return False
    return True


def _own_state(value: Any) -> bool:
    """Of a generator that a loader has: a tensor of torch's, or a list that begins with whose it is."""
    if isinstance(value, list) and value and value[0] == "python":
        return _python_state(value[1:])
    return _tensor(value) or _items(lambda kind: kind == "numpy", _record({"bit_generator": _is(str)}))(value)


_GENERATORS = _record(
    {
        "python": _python_state,
        "numpy": _optional(_items(_is(str), _tensor, _is(int), _is(int), is_number)),
        "cpu": _torch_state,
        "cuda": _list(_tensor),
        "own": _either(_list(_anything), _mapping(_own_state)),
    }
)
_MODULE = _record(
    {"values": _mapping(_anything), "buffers": _mapping(_tensor), "modes": _mapping(_is(bool))},
)
_SOURCES = _optional(_record({"own": _mapping(_anything), "attributes": _mapping(_mapping(_anything))}))
_WORKERS = _optional(_is(bool))
_GROUP = _record({"params": _list(_is(int, str))})
_OPTIMIZER = _record({}, state=_is(Mapping), param_groups=_list(_GROUP))
_OPTIMIZERS = _both(_OPTIMIZER, _record({}, optimizers=_mapping(_OPTIMIZER)))  # several have names
_OPTIMIZER_OF = _items(_is(str), _list(_list(_is(str))))
_OPTIMIZERS_OF = _either(_OPTIMIZER_OF, _mapping(_OPTIMIZER_OF))
_MEAN = _items(_optional(_tensor), _list(_tensor), _list(is_number))
_PLAYER = _record(
    {
        "optimizer": _OPTIMIZERS,
        "optimizer_of": _OPTIMIZERS_OF,
        "gradients": _mapping(_tensor, keys=_number),
        "window": _list(is_number, 2),
    },
    loss=_anything,
)
_SHAPES: Mapping[str, Fits] = {
    "modules": _both(_record({"model": _MODULE}), _mapping(_MODULE)),
    "optimizer": _OPTIMIZERS,
    "optimizer_of": _OPTIMIZERS_OF,
    "gradients": _mapping(_tensor, keys=_number),
    "window": _list(is_number, 2),
    "scaler": _optional(_mapping(_anything)),
    "averages": _mapping(_record({"average": _is(Mapping), "own": _optional(_is(Mapping))})),
    "weights": _mapping(_items(_is(Mapping), _mapping(_is(Mapping)))),
    "schedulers": _mapping(_is(Mapping)),
    "generators": _GENERATORS,
    "beginning": _optional(
        _record(
            {"generators": _GENERATORS, "train": _optional(_is(bool)), "valid": _either(_WORKERS, _mapping(_WORKERS))},
            sources=_SOURCES,
        )
    ),
    "loader": _anything,
    "batches": _optional(_is(int)),
    "meters": _record({"loss": _MEAN, "metrics": _mapping(_anything)}, parts=_mapping(_MEAN)),
    "extra": _mapping(_anything),
}
_LATER: Mapping[str, Fits] = {
    "measured_with": _is(str),
    "measured_by": _mapping(_text),
    "validations": _items(_number, _number),
    "sources": _SOURCES,
    "data": _is(Mapping),
    "numbers": _mapping(is_number),
    "loss": _anything,
    "structure": _list(_anything),
    "players": _record({"playing": _text, "others": _mapping(_PLAYER)}),
    "batch": _items(_anything, _anything, is_number),
    "ranks": _record({"unreduced": _is(bool), "counted": is_number}),
}
"""Parts that checkpoints of earlier versions do not have."""


def check_shape(parts: Mapping[str, Any]) -> None:
    """Refuse parts that no training has saved.

    Raises:
        CheckpointError: with the name of the part.
    """
    _check({**_SHAPES, **_LATER}, parts)


def check_shape_of_weights(parts: Mapping[str, Any]) -> None:
    """As `check_shape`, of the parts that weights are loaded from.

    Raises:
        CheckpointError: with the name of the part.
    """
    _check({name: {**_SHAPES, **_LATER}[name] for name in ("modules", "averages", "measured_with")}, parts)


def _check(shapes: Mapping[str, Fits], parts: Mapping[str, Any]) -> None:
    for name, fits in shapes.items():
        if name in _SHAPES and name not in parts:
            raise CheckpointError(f"it has no part {name!r}, which each training saves")
        if name in parts and not fits(parts[name]):
            found = type(parts[name]).__name__
            raise CheckpointError(f"its part {name!r} is not what a training saves there (it is of the type {found})")
