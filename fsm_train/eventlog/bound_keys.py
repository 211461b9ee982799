"""Writes lines with further keys to a file, through structlog, which holds those that are bound."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import orjson
import structlog


def file_logger(file: BinaryIO, bound: Mapping[str, object]) -> Any:
    """A logger that writes each event to the file, as JSON in a line, with these keys."""
    bare = structlog.wrap_logger(
        structlog.BytesLogger(cast("BinaryIO", _WithoutFlush(file))),
        processors=[_render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return bare.bind(**bound)


class _WithoutFlush:
    """Wraps a file so that `flush`, which structlog calls after each line, does nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write

    def flush(self) -> None:
        """Nothing to do: `EventLog` flushes the file once an epoch."""


def _render(_: object, __: str, event: Any) -> bytes:
    return orjson.dumps(event)
