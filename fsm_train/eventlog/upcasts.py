"""Headers of older schemas.

Rule of this file: a function in `UPCASTS` is added when the schema changes, and never edited afterwards. The tests
read a golden log of each schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import LogError
from .lines import SCHEMA

Header = dict[str, Any]

UPCASTS: Mapping[int, Callable[[Header], Header]] = {
    1: lambda header: header,  # it had the whole history; in schema 2 the lines before it may have some of it
}
"""By schema, the function from a header of that schema to a header of the next one."""


def upcast(header: Header, path: str, line: int) -> Header:
    """The header in the present schema.

    Raises:
        LogError: the header has a newer schema, or none.
    """
    schema = header.get("schema")
    if type(schema) is not int or schema < 1:
        raise LogError(f"its schema is {schema!r:.40}, which is none", path=path, line=line)
    if schema > SCHEMA:
        what = f"this log has schema {schema}, and this version of fsm_train knows up to {SCHEMA}"
        raise LogError(f"{what}: read it with a newer one", path=path, line=line)
    for older in range(schema, SCHEMA):
        header = UPCASTS[older](header)
    return header
