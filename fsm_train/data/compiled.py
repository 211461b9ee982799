"""Modules and names without torch.compile: a compiled module holds the one that it was made of as `_orig_mod`.

Rule of this file: a part of a model has the same name whether it is compiled or not, so that what is saved of the one
is loaded by the other. Only here is `_orig_mod` written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

_INSIDE = "_orig_mod"


def is_compiled(module: nn.Module) -> bool:
    """Whether this is what torch.compile made of another module."""
    return _INSIDE in module._modules


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that this one was compiled from; itself if it was not compiled."""
    while is_compiled(module):
        module = module._modules[_INSIDE]  # type: ignore[assignment]
    return module


def plain_name(name: str) -> str:
    """The name of a part as it is without torch.compile.

    >>> plain_name("encoder._orig_mod.0.weight"), plain_name("_orig_mod"), plain_name("0.weight")
    ('encoder.0.weight', '', '0.weight')
    """
    return ".".join(part for part in name.split(".") if part != _INSIDE) if _INSIDE in name else name


def without_compile(value: Any, depth: int) -> Any:
    """The value, with plain names for keys in all mappings that are nested up to this depth, in lists too.

    >>> without_compile({"model": {"_orig_mod.weight": 1.0}}, depth=2)
    {'model': {'weight': 1.0}}
    """
    if depth and isinstance(value, Mapping):
        return {
            plain_name(key) if isinstance(key, str) else key: without_compile(part, depth - 1)
            for key, part in value.items()
        }
    if depth and isinstance(value, (list, tuple)):
        return [without_compile(part, depth - 1) for part in value]
    return value


def _plain(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    return ((plain_name(name), part) for name, part in named)


def named_parameters(
    module: nn.Module, prefix: str = "", *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Parameter]]:
    """As `module.named_parameters(prefix)`, with plain names."""
    return _plain(module.named_parameters(prefix, remove_duplicate=remove_duplicate))


def named_buffers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """As `module.named_buffers(prefix)`, with plain names."""
    return _plain(module.named_buffers(prefix))


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `module.named_modules()`, with plain names: a compiled part and the one in it have the same."""
    return _plain(module.named_modules())


def state_dict_of(module: nn.Module) -> dict[str, Any]:
    """`module.state_dict()`, with plain names."""
    return dict(_plain(module.state_dict().items()))


def load_state_dict(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Load what `state_dict_of` gave, whether the module is compiled or not.

    Raises:
        RuntimeError: from torch, if names or shapes differ.
    """
    names = {plain_name(name): name for name in module.state_dict()}
    module.load_state_dict({names.get(name, name): value for name, value in values.items()})


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The part at this path of plain names; the module itself for "".

    Raises:
        AttributeError: there is none.
    """
    part = uncompiled(module)
    for name in path.split(".") if path else ():
        part = uncompiled(part.get_submodule(name))
    return part
