"""JSON on standard output."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from ..encoding import Json, encode
from ..wording import escaped


def write_json(value: object) -> None:
    """Write a value as one line; what JSON has no form for is written as in a log, and what is no text escaped."""
    print(_json(value))


def write_json_with(fields: Mapping[str, object], key: str, items: Iterable[object]) -> None:
    """Write a mapping, which is not empty, with one more key: a list, whose items are written one by one."""
    print(_json(fields)[:-1], f'"{key}":[', sep=",", end="")
    for before, item in zip(itertools.chain([""], itertools.repeat(",")), items, strict=False):
        print(before, _json(item), sep="", end="")
    print("]}")


def _json(value: object) -> str:
    """The value as JSON; a stream that knows no Unicode gets JSON's own escapes."""
    try:
        data = orjson.dumps(value, default=encode)
    except TypeError:  # a whole number beyond 64 bits, or text that is not valid Unicode
        data = orjson.dumps(_portable(value))
    if data.isascii() or "utf" in str(sys.stdout.encoding).lower():
        return data.decode()
    return json.dumps(orjson.loads(data))


def _portable(value: Any) -> Json:
    """The value without what orjson refuses."""
    if isinstance(value, Mapping):
        return {_text(str(key)): _portable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(part) for part in value]
    return _text(value) if isinstance(value, str) else encode(value)


def _text(text: str) -> str:
    return text if isinstance(encode(text), str) else escaped(text)
