"""Logs of older versions: each step makes a header of one schema that of the next.

Rule of this file: a step is written when the schema changes, and never changed again; golden logs of
each schema are read in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import LogError
from .lines import SCHEMA

Header = dict[str, Any]

UPCASTS: Mapping[int, Callable[[Header], Header]] = {}
"""By schema, what makes a header of it one of the next schema."""


def upcast(header: Header, path: str, line: int, *, to: int = SCHEMA) -> Header:
    """The header as the present schema has it.

    Raises:
        LogError: it is of a newer schema, or of none.
    """
    schema = header.get("schema")
    if type(schema) is not int or schema < 1:
        raise LogError(f"its schema is {schema!r:.40}, which is none", path=path, line=line)
    if schema > to:
        raise LogError(
            f"this log has schema {schema}, and this version of fsm_train knows up to {to}: read it with a newer one",
            path=path,
            line=line,
        )
    while schema < to:
        header = UPCASTS[schema](header)
        schema += 1
    return header
