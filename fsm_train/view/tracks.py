"""Tracks: what one name of a state was at each line, as the lines at which it changed.

Rule of this file: that a value changed is decided here, once; the page only looks up what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import orjson

from ..encoding import Json
from .columns import Packed, packed_ints, packed_values, shown_text

ABSENT: Mapping[str, Json] = {"$absent": 0}
"""Stands where a name is in the states before and after, and not in this one."""


class Track:
    """The rows at which one value changed, and what it was from there on.

    Attributes:
        rows: the rows, in order.
        values: the value at each of these rows, as the JSON of the log.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.values: list[Json] = []

    def see(self, row: int, value: Json) -> None:
        """The value at this row."""
        if not self.values or not is_same(self.values[-1], value):
            self.note(row, value)

    def note(self, row: int, value: Json) -> None:
        """A value at this row, whether or not it is that of the row before."""
        self.rows.append(row)
        self.values.append(value)

    def packed(self) -> Packed:
        """The track as JSON."""
        return {"rows": packed_ints(self.rows), "values": packed_values(self.values)}


def is_same(one: Json, other: Json) -> bool:
    """Whether two values of a log are written alike: 1 is not 1.0, and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if type(one) in (dict, list):
        return orjson.dumps(one) == orjson.dumps(other)
    return bool(one == other) and (one != 0 or repr(one) == repr(other))


class Group:
    """The tracks of one part of a state, such as its metrics, by name.

    A name that a later state lacks is `ABSENT` from there on.
    """

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {}
        self._present: Set[str] = frozenset()

    def see(self, row: int, values: Mapping[str, Json]) -> None:
        """All values of this part at a row."""
        if self._present and not self._present <= values.keys():
            for name in self._present - values.keys():
                self.tracks[name].see(row, ABSENT)
        tracks = self.tracks
        for name, value in values.items():  # no call where nothing changed: this is done for each name of each line
            track = tracks.get(name)
            if track is None:
                tracks[name] = track = Track()
            elif value is track.values[-1]:
                continue
            track.see(row, value)
        if self._present != values.keys():
            self._present = frozenset(values)

    def note(self, row: int, values: Mapping[str, Json]) -> None:
        """Values that are there at this row alone, such as facts."""
        for name, value in values.items():
            self.track(name).note(row, value)

    def track(self, name: str) -> Track:
        """The track of this name; a new one where there is none."""
        if name not in self.tracks:
            self.tracks[name] = Track()
        return self.tracks[name]

    def packed(self) -> list[Packed]:
        """The tracks as JSON, each with its name, in the order in which the names came up."""
        return [{"name": shown_text(name), **track.packed()} for name, track in self.tracks.items()]
