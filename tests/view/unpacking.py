"""Reads the columns of a page as its script does, in Python: what a row has by name."""

from __future__ import annotations

import itertools
from typing import Any

Packed = dict[str, Any]


def ints(column: Packed) -> list[int]:
    distances = column.get("d")
    if distances is None:
        pairs = zip(column["r"][::2], column["r"][1::2], strict=True)
        distances = [distance for distance, count in pairs for _ in range(count)]
    return [*itertools.accumulate(distances)]


def values(column: Packed) -> list[Any]:
    if "i" in column:
        return ints(column["i"])
    return column["n"] if "n" in column else [column["v"][code] for code in ints(column["c"])]


def points(track: Packed) -> dict[int, Any]:
    """The value at each row of a track that has one of its own."""
    return dict(zip(ints(track["rows"]), values(track["values"]), strict=True))


def states(run: Packed) -> list[dict[str, dict[str, Any]]]:
    """Of each row the groups of its state, each with its names and values."""
    found: list[dict[str, dict[str, Any]]] = []
    changes = {part: {track["name"]: points(track) for track in tracks} for part, tracks in run["groups"].items()}
    now: dict[str, dict[str, Any]] = {part: {} for part in changes}
    for row in range(run["rows"]):
        for part, tracks in changes.items():
            for name, at in tracks.items():
                if row in at:
                    now[part][name] = at[row]
        found.append(
            {
                part: {name: value for name, value in group.items() if value != {"$absent": 0}}
                for part, group in now.items()
            }
        )
    return found
