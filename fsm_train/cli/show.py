"""`fsm-train show LOG`."""

from __future__ import annotations

import argparse
import os
import sys

from ..eventlog.render import as_json, as_text, epochs_as_json, summarize
from .output import write_json_with
from .status import AGREES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")


def run(options: argparse.Namespace) -> int:
    summary = summarize(options.log)
    if options.json:
        write_json_with(as_json(summary), "epochs", epochs_as_json(summary))
        return AGREES
    for line in as_text(summary):
        is_header = line.lstrip().startswith("epoch ")
        print(_bold(line) if is_header else line)
    return AGREES


def _bold(text: str) -> str:
    """Bold in a terminal, unless NO_COLOR is set."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
