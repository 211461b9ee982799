"""Reads a log a few lines ahead.

Rule of this file: nobody can tell, but by the clock. An error comes where it would have come.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from .entry import Entry
from .errors import LogError

LINES_AHEAD = 32


def read_ahead(lines: Iterator[Entry]) -> Iterator[Entry]:
    """The same lines; several are checked in a row before the first of them is given.

    To check a line, replay it, and check the next, each finds the caches of the processor full of the other, and takes
    an eighth longer.
    """
    while True:
        checked: list[Entry] = []
        try:
            for line in islice(lines, LINES_AHEAD):
                checked.append(line)  # noqa: PERF402  those before an error are given
        except (LogError, OSError):
            yield from checked
            raise
        if not checked:
            return
        yield from checked
