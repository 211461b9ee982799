"""`fsm-train diff LOG LOG`."""

from __future__ import annotations

import argparse

import attrs

from ..eventlog.comparison import diff
from ..wording import escaped
from .output import write_json
from .status import AGREES, DIFFERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a")
    parser.add_argument("b")


def run(options: argparse.Namespace) -> int:
    difference = diff(options.a, options.b)
    if options.json:
        write_json(None if difference is None else attrs.asdict(difference))
    elif difference is None:
        print("no difference")
    else:
        for line in str(difference).split("\n"):
            print(escaped(line))
    return AGREES if difference is None else DIFFERS
