"""A loss by parts: a mapping whose "loss" is minimized, and whose other parts are measured beside it.

Rule of this file: what is no mapping is passed on as it is.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..core.checks import NO_TEXT, is_text
from ..core.errors import WorkloadError
from ..core.values import EMPTY
from ..data.batches import in_words
from .real_numbers import as_tensor, is_real_scalar

LossFn = Callable[[Any, Any], "torch.Tensor | Mapping[str, torch.Tensor]"]
"""A loss: of (output, target), a scalar tensor, or a mapping with "loss" and its parts by name."""

Parts = Mapping[str, torch.Tensor]
NO_PARTS: Parts = EMPTY  # which is copied with a workload, as a proxy of a mapping is not


def separate(loss: Any, *, several: bool = False) -> tuple[Any, Parts]:
    """The loss that is minimized, and its parts, detached; a loss that is no mapping has none.

    With `several`, a part may have several elements, such as the loss of each sample, and is passed over then.

    >>> separate({"loss": torch.tensor(3.0), "kl": torch.tensor(1.0)})
    (tensor(3.), {'kl': tensor(1.)})

    Raises:
        WorkloadError: a mapping has no "loss", or a part is no scalar with a name.
    """
    if not isinstance(loss, Mapping):
        return loss, NO_PARTS
    if "loss" not in loss:
        raise WorkloadError(
            f"loss_fn returned a mapping of {', '.join(map(repr, loss)) or 'nothing'}, without 'loss': return what is "
            "minimized under that name, such as {'loss': rebuilt + kl, 'kl': kl}"
        )
    measured = {name: value for name, value in loss.items() if not (several and getattr(value, "ndim", None))}
    return loss["loss"], {name: _part(name, value) for name, value in measured.items() if name != "loss"}


def _part(name: Any, value: Any) -> torch.Tensor:
    if not isinstance(name, str):
        raise WorkloadError(
            f"loss_fn returned a mapping with the key {name!r}: its parts have names, which are strings"
        )
    if not is_text(name):
        raise WorkloadError(f"loss_fn returned a part with the name {name!r}: {NO_TEXT}")
    if getattr(value, "dim", int)() != 0 or not is_real_scalar(value):
        raise WorkloadError(
            f"loss_fn returned {in_words(value)} as the part {name!r}: a part is a real number or a scalar tensor, "
            "such as a mean over the batch; leave out what is none"
        )
    return value.detach() if isinstance(value, torch.Tensor) else as_tensor(value)


def mixed(weight: float, own: Any, others: Any) -> Any:
    """`weight` of one loss and the rest of the other; of mappings part by part."""
    if isinstance(own, Mapping):
        return {name: mixed(weight, value, others[name]) for name, value in own.items()}
    return weight * own + (1 - weight) * others


# ------------------------------------------------------------------------------- before the first batch


def may_have_parts(loss_fn: object) -> bool:
    """Whether a loss may return a mapping with "loss": that text is in the Python code that it may call.

    >>> may_have_parts(nn.MSELoss()), may_have_parts(lambda output, target: {"loss": output})
    (False, True)
    """
    seen: set[int] = set()
    ahead: list[object] = [loss_fn]
    while ahead:
        value = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType) and not _is_torchs(value) and _has_text(value.__code__):
            return True
        ahead += _called_by(value)
    return False


def _is_torchs(value: types.FunctionType | type) -> bool:
    return (value.__module__ or "").partition(".")[0] == "torch"


def _has_text(constant: object) -> bool:
    if isinstance(constant, types.CodeType):
        return any(map(_has_text, constant.co_consts))
    return constant == "loss" or (isinstance(constant, tuple) and any(map(_has_text, constant)))


def _called_by(value: object) -> list[object]:
    """What a callable may call, as far as that is written in Python and not in torch."""
    match value:
        case functools.partial():
            return [value.func, *value.args, *value.keywords.values()]
        case types.MethodType():
            return [value.__self__, value.__func__]
        case types.FunctionType():
            return [] if _is_torchs(value) else [*_named(value), *_enclosed(value)]
        case type() | types.ModuleType() | types.BuiltinFunctionType():
            return []
    if not callable(value):
        return []
    own = [kind for kind in type(value).__mro__ if kind is not object and not _is_torchs(kind)]
    methods = [method for kind in own for method in vars(kind).values() if isinstance(method, types.FunctionType)]
    return [*methods, *(value.children() if isinstance(value, nn.Module) else ())]


def _named(function: types.FunctionType) -> Iterator[object]:
    """What the names in a function mean in its module, and in the modules that are there."""
    names = _names(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        yield value
        if isinstance(value, types.ModuleType):
            yield from (vars(value).get(other) for other in names)


def _names(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def _enclosed(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is not filled yet
            yield cell.cell_contents
