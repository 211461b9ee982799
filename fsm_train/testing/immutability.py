"""Records of attrs and dataclasses: whether they can be changed, and copies of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import attrs


def is_mutable(value: Any) -> bool:
    """Whether a field of a record, or of a record in it, can be set."""
    if isinstance(value, tuple):
        return any(map(is_mutable, value))
    for field in fields_of(value):
        own = getattr(value, field)
        try:
            setattr(deep_copy(value), field, own)
        except AttributeError:  # frozen records of attrs and of dataclasses raise it
            if is_mutable(own):
                return True
        else:
            return True
    return False


def has_nan(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else [getattr(value, field) for field in fields_of(value)]
    return (isinstance(value, float) and value != value) or any(map(has_nan, parts))


def fields_of(value: Any) -> list[str]:
    if attrs.has(type(value)):
        return [field.name for field in attrs.fields(type(value))]
    return [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []


def deep_copy(value: Any) -> Any:
    """A value of new records and tuples with the same contents; anything else in it is shared."""
    if isinstance(value, tuple):
        return tuple(map(deep_copy, value))
    fields = fields_of(value)
    copied = object.__new__(type(value)) if fields else value
    for field in fields:
        object.__setattr__(copied, field, deep_copy(getattr(value, field)))
    return copied
