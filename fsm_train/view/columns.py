"""Columns: many values in little JSON, each as it was, and safe to show.

Rules of this file: what is packed can be unpacked to the last bit (README.md has the forms). No text leaves it that is
not printable, and no number that JavaScript would round.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import orjson

from ..encoding import Json
from ..wording import escaped

EXACT = 1 << 53
"""JavaScript's numbers are exact up to this one."""

MAX_TEXT = 4000
"""The longest text of a log that is shown whole, in characters."""

Packed = dict[str, Json]


def shown(value: Json) -> Json:
    r"""JSON of a log in the form in which a page may have it.

    Texts and names are escaped as in a terminal, and cut where they are longer than any page; whole numbers that
    JavaScript would round are written as text.

    >>> shown({"a\u202eb": [1, 1 << 60, 0.5]})
    {'a\\u202eb': [1, {'$int': '1152921504606846976'}, 0.5]}
    """
    kind = type(value)
    if kind is str:
        return shown_text(value)
    if kind is int:
        return value if -EXACT <= value <= EXACT else {"$int": str(value)}
    if kind is list:
        return [shown(part) for part in value]
    if kind is dict:
        return {shown_text(name): shown(part) for name, part in value.items()}
    return value


def shown_text(text: str) -> str:
    """The text, escaped; a long one without its middle."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]} … {len(text) - MAX_TEXT} characters … {text[-MAX_TEXT // 2 :]}"
    return escaped(text)


def packed_ints(numbers: Iterable[int]) -> Packed:
    """Whole numbers: the first one and each one's distance from the one before; equal distances as pairs with a count.

    >>> packed_ints([3, 4, 5, 6, 7]), packed_ints([0, 5, 2])
    ({'r': [3, 1, 1, 4]}, {'d': [0, 5, -3]})
    """
    distances = [number - before for before, number in itertools.pairwise([0, *numbers])]
    runs = [part for distance, same in itertools.groupby(distances) for part in (distance, len([*same]))]
    return {"r": runs} if len(runs) < len(distances) else {"d": distances}


def packed_values(values: Sequence[Json]) -> Packed:
    """Any JSON: as codes of distinct values where many are equal, as distances where all are counts, else as they are.

    >>> packed_values(["a", "a", "b", "a"])
    {'v': ['a', 'b'], 'c': {'d': [0, 0, 1, -1]}}
    >>> packed_values([0.5, 0.25])
    {'n': [0.5, 0.25]}
    """
    if values and all(type(value) is int and abs(value) <= EXACT // 2 for value in values):
        return {"i": packed_ints(values)}
    codes: dict[bytes, int] = {}
    coded = [codes.setdefault(orjson.dumps(value), len(codes)) for value in values]
    if 2 * len(codes) > len(values):
        return {"n": [shown(value) for value in values]}
    distinct = [shown(orjson.loads(value)) for value in codes]
    return {"v": distinct, "c": packed_ints(coded)}
