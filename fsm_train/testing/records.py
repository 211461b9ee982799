"""Records, whoever made their class: whether they can be written to, and made again."""

from __future__ import annotations

import dataclasses
from typing import Any

import attrs


def can_be_written(value: Any) -> bool:
    """Whether a record, or one in it, lets one of its fields be set."""
    if isinstance(value, tuple):
        return any(map(can_be_written, value))
    for field in fields_of(value):
        own = getattr(value, field)
        try:
            setattr(made_again(value), field, own)
        except AttributeError:  # both attrs and dataclasses say so
            if can_be_written(own):
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


def made_again(value: Any) -> Any:
    """An equal value in which nothing is the same object, as far as that goes."""
    if isinstance(value, tuple):
        return tuple(map(made_again, value))
    fields = fields_of(value)
    again = object.__new__(type(value)) if fields else value
    for field in fields:
        object.__setattr__(again, field, made_again(getattr(value, field)))
    return again
