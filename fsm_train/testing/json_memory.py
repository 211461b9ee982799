"""Memories through JSON and back.

A memory is a number, a string, a tuple, or a frozen attrs record of them. Standard JSON has no NaN and
no infinity, so such a float is written by its name; a record is made again by its class.
"""

from __future__ import annotations

import json
import math
from typing import Any

import attrs


def through_json(memory: object) -> object:
    """The memory as it comes back from a file.

    >>> through_json((1, 0.5, float("nan"), None))
    (1, 0.5, nan, None)

    Raises:
        Exception: what the class of a record raises when it is made from its own fields.
    """
    kinds: dict[str, Any] = {}
    return _read(json.loads(json.dumps(_written(memory, kinds), allow_nan=False)), kinds)


def _written(value: Any, kinds: dict[str, Any]) -> Any:
    kind: Any = type(value)
    if kind is float and not math.isfinite(value):
        return {"float": repr(value)}
    if kind is tuple:
        return [_written(part, kinds) for part in value]
    if attrs.has(kind):
        name = f"{kind.__module__}.{kind.__qualname__}"
        kinds[name] = kind
        return {
            "record": name,
            "fields": {field.alias: _written(getattr(value, field.name), kinds) for field in attrs.fields(kind)},
        }
    return value


def _read(value: Any, kinds: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return tuple(_read(part, kinds) for part in value)
    if isinstance(value, dict):
        if "float" in value:
            return float(value["float"])
        return kinds[value["record"]](**{name: _read(part, kinds) for name, part in value["fields"].items()})
    return value
