"""Where two values differ, field by field, and whether they are the same to the last bit.

`==` is not enough: NaN differs from itself, 0.0 equals -0.0, 1 equals True, and it does not say which of a
state's fields differ.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

import attrs

from ..core.history import History
from ..core.state import State

_ATOMS = (bool, int, str, bytes, type(None))
_SEQUENCES = (tuple, list)


def fingerprint(value: object) -> Any:
    """A value that is equal for two values if and only if they are the same, NaN included.

    >>> fingerprint(float("nan")) == fingerprint(float("nan"))
    True
    >>> fingerprint(0.0) == fingerprint(-0.0)
    False
    """
    value = tuple(value) if isinstance(value, History) else value
    kind = type(value)
    if isinstance(value, float):
        return kind, struct.pack("<d", value)
    if isinstance(value, _ATOMS):
        return kind, value
    if isinstance(value, Mapping):
        return "mapping", frozenset((fingerprint(key), fingerprint(item)) for key, item in value.items())
    if isinstance(value, _SEQUENCES):
        return kind, tuple(map(fingerprint, value))
    if isinstance(value, Set):
        return "set", frozenset(map(fingerprint, value))
    if isinstance(value, types.FunctionType):
        return kind, value.__module__, value.__qualname__
    if attrs.has(kind):
        return kind, tuple(fingerprint(getattr(value, field.name)) for field in attrs.fields(kind))
    return kind, repr(value)


def same(a: object, b: object) -> bool:
    """Whether two values are the same to the last bit."""
    return bool(fingerprint(a) == fingerprint(b))


def differences(a: object, b: object, path: str = "", *, exactly: bool = True) -> Iterator[str]:
    r"""A line for each place where two values differ, with its path and both values.

    >>> from fsm_train.testing import at
    >>> from fsm_train import Phase
    >>> print(*differences(at(Phase.EPOCH_END, step=3, lr=0.1), at(Phase.EPOCH_END, step=4, lr=0.2)), sep="\n")
    step: 3 != 4
    hyper['lr']: 0.1 != 0.2

    Args:
        a: a state, or any value in one.
        b: another.
        path: the path of the two values, such as "hyper".
        exactly: compare to the last bit, and not with `==`.
    """
    if same(a, b) if exactly else (a is b or a == b):
        return
    kind: Any = type(a)
    if kind is type(b) and attrs.has(kind):
        # What `==` of a State ignores is no difference. In a memory it is: the author may have forgotten it.
        for field in attrs.fields(kind):
            if field.eq or not isinstance(a, State):
                where = f"{path}.{field.name}" if path else field.name
                yield from differences(getattr(a, field.name), getattr(b, field.name), where, exactly=exactly)
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys((*a, *b)):
            if key not in a or key not in b:
                yield f"{path}[{key!r}]: " + (f"only right, {b[key]!r}" if key in b else f"only left, {a[key]!r}")
            else:
                yield from differences(a[key], b[key], f"{path}[{key!r}]", exactly=exactly)
    elif isinstance(a, (tuple, History)) and isinstance(b, (tuple, History)) and len(a) == len(b):
        for i, (mine, other) in enumerate(zip(a, b, strict=True)):
            yield from differences(mine, other, f"{path}[{i}]", exactly=exactly)
    else:
        yield f"{path or 'value'}: {_shown(a)} != {_shown(b)}"


def _shown(value: object) -> str:
    return str(value) if isinstance(value, types.FunctionType) else repr(value)
