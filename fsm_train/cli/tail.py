"""`fsm-train tail LOG`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import attrs

from ..core.phase import FINAL, Phase
from ..encoding import Json, encode
from ..eventlog.checker import LineChecker
from ..eventlog.entries import MAX_LINE_BYTES
from ..eventlog.errors import LogError
from ..eventlog.lines import HISTORY
from ..eventlog.reader import Line, record_of
from ..eventlog.render import line_as_text
from ..wording import escaped
from .output import write_json
from .standard_input import STANDARD_INPUT, standard_input
from .status import AGREES

READS_STANDARD_INPUT = True
"""A log that is called `-` is shown as it comes, not when it is over."""

POLL_SECONDS = 0.2
"""How long to wait for a new line before looking again."""

_TOO_LONG = f"it is longer than {MAX_LINE_BYTES >> 20} MiB"

GONE_SECONDS = 3.0
"""How long to wait for a new log where the old one was deleted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")
    parser.add_argument("--all", action="store_true", help="show each line, not only epochs and the end")


def run(options: argparse.Namespace) -> int:
    if options.log == STANDARD_INPUT:
        _show(lines_from(standard_input()), options)
        return AGREES
    path = Path(options.log)
    while True:
        try:
            _show(follow(path), options)
        except BegunAnewError as error:
            print(f"fsm-train: {escaped(error)}", file=sys.stderr)
        else:
            return AGREES


def _show(lines: Iterable[Line], options: argparse.Namespace) -> None:
    for line in lines:
        if options.all or line.phase in (Phase.EPOCH_END, *FINAL):
            if options.json:
                write_json(_as_json(line))
            else:
                print(line_as_text(line))
            sys.stdout.flush()


def lines_from(stream: BinaryIO) -> Iterator[Line]:
    """The lines of a log that comes through a pipe, each as soon as it is there, until the pipe is closed.

    Raises:
        LogError: the log is damaged.
    """
    checked = LineChecker(Path("standard input"))
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise LogError(_TOO_LONG, path=checked.path, line=number)
        entry = checked.check(number, raw)
        if entry is not None and entry.event != HISTORY and isinstance(line := record_of(entry), Line):
            yield line


class BegunAnewError(LogError):
    """Another log is at this path now, from its beginning."""


def follow(path: Path) -> Iterator[Line]:
    """The lines of a log as they are written, up to the end of the training. A header is no line.

    Raises:
        BegunAnewError: the file was emptied, replaced or written from its beginning: follow the path again.
        LogError: the log is damaged, or was deleted.
        OSError: the log cannot be read.
    """
    checked, number, last, newest = LineChecker(path), 0, None, b""
    with path.open("rb") as file:
        while True:
            start = file.tell()
            raw = file.readline(MAX_LINE_BYTES + 1)
            if len(raw) > MAX_LINE_BYTES:
                raise LogError(_TOO_LONG, path=str(path), line=number + 1)
            if raw.endswith(b"\n"):
                number += 1
                try:
                    entry = checked.check(number, raw)
                except LogError:
                    _refuse_another(path, file, start, newest)
                    raise
                newest = raw
                if entry is not None and entry.event != HISTORY:
                    last = record_of(entry)
                    if isinstance(last, Line):
                        yield last
                continue
            if isinstance(last, Line) and last.phase in FINAL:
                return
            time.sleep(POLL_SECONDS)
            _refuse_another(path, file, start, newest)
            file.seek(start)  # the line is not complete yet: read it again


def _refuse_another(path: Path, file: BinaryIO, end: int, newest: bytes) -> None:
    """Refuse to go on where this path has another log than the one that is read.

    Args:
        path: of the log.
        file: the log, as it was opened.
        end: where the line that was read last ends.
        newest: the line that was read last.

    Raises:
        BegunAnewError: the file is another one, or does not have that line there any more.
        LogError: the file was deleted, and no other comes.
    """
    for _ in range(round(GONE_SECONDS / POLL_SECONDS)):
        if path.exists():
            break
        time.sleep(POLL_SECONDS)
    else:
        raise LogError("the log was deleted while it was followed", path=str(path))
    file.seek(end - len(newest))
    if not os.path.samestat(path.stat(), os.fstat(file.fileno())) or file.read(len(newest)) != newest:
        raise BegunAnewError("the log was begun anew; what follows is the new one", path=str(path))


def _as_json(line: Line) -> dict[str, Json]:
    fields = attrs.asdict(line, recurse=False)
    encoded = {name: value if isinstance(value, (dict, list)) else encode(value) for name, value in fields.items()}
    return {**encoded, "phase": line.phase.value}
