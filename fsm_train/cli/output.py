"""JSON on standard output."""

from __future__ import annotations

import orjson

from ..encoding import encode


def write_json(value: object) -> None:
    """Write a value as one line; what JSON has no form for is written as a log has it."""
    print(orjson.dumps(value, default=encode).decode())
