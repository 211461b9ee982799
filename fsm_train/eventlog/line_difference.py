"""The first difference between two lines of a log, and how it is written for a person.

Rule of this file: what is compared, and in which order, is a sequence of `Part`s that the caller gives. The
comparison of two logs, the replay and the what-if all use `first_change`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from ..encoding import Json
from .entry import Entry


class Part(NamedTuple):
    """Two mappings to compare key by key.

    Attributes:
        name: what the caller calls this part.
        a, b: the mappings. A missing key equals None.
        keys: the keys to compare, in order; None means all keys of `a`, then the others of `b`.
    """

    name: str
    a: Mapping[str, Json]
    b: Mapping[str, Json]
    keys: Iterable[str] | None = None


class Change(NamedTuple):
    """A key with two different values; `part` is the name of the `Part` that it is in."""

    part: str
    key: str
    a: Json
    b: Json


def first_change(parts: Iterable[Part]) -> Change | None:
    """The first key of the first part with two different values; None if all are equal."""
    for name, a, b, keys in parts:
        for key in dict.fromkeys((*a, *b)) if keys is None else keys:
            if a.get(key) != b.get(key):
                return Change(name, key, a.get(key), b.get(key))
    return None


def place_of(entry: Entry) -> dict[str, Any]:
    """The phase of a line and its counters, as arguments of a `Divergence` or a `Difference`."""
    body = entry.body.get("start", entry.body)
    return {"phase": entry.event, **{name: body.get(name, 0) for name in ("epoch", "batch", "iteration", "step")}}


def format_place(phase: str, epoch: int, batch: int, step: int) -> str:
    """Phase and counters, for a person."""
    return f"{phase} (epoch {epoch}, batch {batch}, step {step})"


def format_json(value: Json) -> str:
    """A value from a log, for a person."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else orjson.dumps(value).decode()
