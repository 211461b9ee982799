"""Reads a log a few lines ahead.

Rule of this file: nobody can tell, but by the clock. An error comes where it would have come.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from .entry import Entry, open_line
from .errors import LogError

LINES_AHEAD = 32


def read_ahead(lines: Iterator[Entry]) -> Iterator[Entry]:
    """The lines that count; several are checked in a row before the first of them is given.

    To check a line, replay it, and check the next, each finds the caches of the processor full of the other, and takes
    an eighth longer.
    """
    while True:
        checked: list[Entry] = []
        read = None
        try:
            for line in islice(lines, LINES_AHEAD):  # those before an error are given
                if line.counts:
                    checked.append(line)
                else:
                    open_line(line)
                read = line
        except (LogError, OSError):
            yield from checked
            raise
        if read is None:
            return
        yield from checked
