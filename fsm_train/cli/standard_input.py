"""A log that comes through a pipe: `cat run.jsonl | fsm-train show -`.

Rule of this file: a log is read more than once, so what comes through the pipe is first written to a file, which is
gone when the command ends.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..core.errors import FsmTrainError
from .status import UsageError

STANDARD_INPUT = "-"

LOGS = ("log", "logs", "a", "b")
"""The arguments of commands that are paths of logs."""

_GZIP = b"\x1f\x8b"


def standard_input() -> BinaryIO:
    """Standard input as bytes.

    Raises:
        UsageError: it is closed.
    """
    if sys.stdin is None:
        raise UsageError("- is standard input, which is closed")
    return cast("BinaryIO", sys.stdin.buffer)


def with_standard_input(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command, with the path of a file that holds standard input in place of each log that is called `-`.

    Raises:
        UsageError: several logs are; or what the command raised, with "standard input" for that path.
    """

    def run_with_it(options: argparse.Namespace) -> int:
        given = {name: value for name in LOGS if (value := getattr(options, name, None))}
        logs = [log for value in given.values() for log in (value if isinstance(value, list) else [value])]
        if STANDARD_INPUT not in logs:
            return run(options)
        if logs.count(STANDARD_INPUT) > 1:
            raise UsageError("two logs are -, and standard input can be read once")
        if getattr(options, "output", "") is None:
            raise UsageError("standard input has no folder to write beside it: say where with -o")
        with _in_a_file() as path:
            for name, value in given.items():
                named = [path if log == STANDARD_INPUT else log for log in value] if isinstance(value, list) else path
                if value == STANDARD_INPUT or isinstance(value, list):
                    setattr(options, name, named)
            try:
                return run(options)
            except BrokenPipeError:  # of standard output, which is not about the log
                raise
            except (FsmTrainError, OSError) as error:
                raise UsageError(str(error).replace(path, "standard input")) from error

    return run_with_it


@contextlib.contextmanager
def _in_a_file() -> Iterator[str]:
    """The path of a file with what comes from standard input; where that is compressed, it is called so."""
    with tempfile.TemporaryDirectory(prefix="fsm-train-") as folder:
        source = standard_input()
        begin = source.read(len(_GZIP))
        path = Path(folder) / ("standard input.gz" if begin == _GZIP else "standard input")
        with path.open("wb") as file:
            file.write(begin)
            shutil.copyfileobj(source, file)
        yield str(path)
