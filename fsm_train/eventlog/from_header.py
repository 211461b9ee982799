"""Callbacks made again from what a header says of them.

Rule of this file: only factories of the library are called, and only with values that are data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from .. import callbacks as library
from .. import schedules
from ..core.callback import Callback
from ..encoding import CannotDecodeError, Json, decode
from .entries import Entry
from .errors import LogError

FACTORIES: Mapping[str, Any] = {
    f"{make.__module__}.{make.__qualname__}": make for make in (getattr(library, name) for name in library.__all__)
}
SCHEDULES: Mapping[str, type] = {
    name: kind for name in schedules.__all__ if attrs.has(kind := getattr(schedules, name)) and isinstance(kind, type)
}


def rebuilt(header: Entry, path: str = "") -> tuple[Callback[Any], ...]:
    """The callbacks of a call of `run`, made from its header.

    Raises:
        LogError: one of them is not of the library, or its settings are no data; it is named.
    """
    return tuple(_rebuilt_one(spec, header.number, path) for spec in header.body["callbacks"])


def remade(spec: Mapping[str, Json], **changes: object) -> Callback[Any]:
    """The callback that a header tells of, with some of its settings changed.

    Raises:
        CannotDecodeError: it is not of the library, or its settings are no data.
        TypeError, ValueError: the factory refuses the settings.
    """
    make = FACTORIES.get(spec["factory"])
    if make is None:
        raise CannotDecodeError("it is not of the library")
    params = {**{name: decode(value, SCHEDULES) for name, value in spec["params"].items()}, **changes}
    callback: Callback[Any] = make(**params)
    name = decode(spec["name"])
    return callback if callback.name == name else attrs.evolve(callback, name=name)


def _rebuilt_one(spec: Any, line: int, path: str) -> Callback[Any]:
    try:
        return remade(spec)
    except (CannotDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        name = spec.get("name") if isinstance(spec, dict) else spec
        raise LogError(
            f"the callback {name!r:.80} cannot be made from the log: {error}. Give the callbacks of this training",
            path=path,
            line=line,
        ) from error


def declared(spec: Mapping[str, Json]) -> tuple[Json, ...]:
    """What decides when a callback is consulted, and in which order."""
    return (spec["name"], spec["at"], spec["needs"], spec["every"], spec["order"])
