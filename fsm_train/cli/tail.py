"""`fsm-train tail LOG`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from ..core.phase import FINAL, Phase
from ..encoding import Json, encode
from ..eventlog.entries import LineChecker
from ..eventlog.lines import HISTORY
from ..eventlog.reader import Line, record_of
from ..eventlog.render import line_as_text
from .output import write_json
from .status import AGREES

POLL_SECONDS = 0.2
"""How long to wait for a new line before looking again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")
    parser.add_argument("--all", action="store_true", help="show each line, not only epochs and the end")


def run(options: argparse.Namespace) -> int:
    for line in follow(Path(options.log)):
        if options.all or line.phase in (Phase.EPOCH_END, *FINAL):
            if options.json:
                write_json(_as_json(line))
            else:
                print(line_as_text(line))
            sys.stdout.flush()
    return AGREES


def follow(path: Path) -> Iterator[Line]:
    """The lines of a log as they are written, up to the end of the training. A header is no line.

    Raises:
        LogError, OSError: the log cannot be read.
    """
    checked, number, last = LineChecker(path), 0, None
    with path.open("rb") as file:
        while True:
            start = file.tell()
            raw = file.readline()
            if raw.endswith(b"\n"):
                number += 1
                entry = checked.check(number, raw)
                if entry is not None and entry.event != HISTORY:
                    last = record_of(entry, str(path))
                    if isinstance(last, Line):
                        yield last
                continue
            if isinstance(last, Line) and last.phase in FINAL:
                return
            file.seek(start)  # the line is not complete yet: read it again
            time.sleep(POLL_SECONDS)


def _as_json(line: Line) -> dict[str, Json]:
    fields = attrs.asdict(line, recurse=False)
    encoded = {name: value if isinstance(value, (dict, list)) else encode(value) for name, value in fields.items()}
    return {**encoded, "phase": line.phase.value}
