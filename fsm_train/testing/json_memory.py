"""Memories through JSON and back, in the form in which logs and checkpoints have them."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from ..core.values import record_classes
from ..encoding import decode, encode


def through_json(memory: object, classes: Mapping[str, type] | None = None) -> object:
    """The memory as it comes back from a file; of records of these classes, or of those that are in it.

    >>> through_json((1, 0.5, float("nan"), None))
    (1, 0.5, nan, None)

    Raises:
        ValueError: it cannot be made again, with the reason.
    """
    return decode(orjson.loads(orjson.dumps(encode(memory))), record_classes(memory) if classes is None else classes)
