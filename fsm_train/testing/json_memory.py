"""Memories through JSON and back, in the format of logs and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from ..core.values import record_classes
from ..encoding import decode, encode


def through_json(memory: object, classes: Mapping[str, type] | None = None) -> object:
    """The memory after writing it as JSON and reading it back.

    >>> through_json((1, 0.5, float("nan"), None))
    (1, 0.5, nan, None)

    Args:
        memory: the memory.
        classes: record classes by name that may be read; by default those in the memory.

    Raises:
        ValueError: it cannot be read back; the message says why.
    """
    return decode(orjson.loads(orjson.dumps(encode(memory))), record_classes(memory) if classes is None else classes)
