"""`fsm-train plot LOG ... -o PICTURE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..eventlog.render import summarize
from ..lazy import from_extra
from ..wording import escaped
from .output import write_json
from .status import AGREES, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG")
    parser.add_argument(
        "-o", "--output", required=True, help="the picture, in the place of an older one: .png, .svg, .pdf"
    )


def run(options: argparse.Namespace) -> int:
    summaries = {log: summarize(log) for log in options.logs}
    try:
        plot = from_extra("fsm_train.eventlog.plots", "plot", "plot").plot
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error
    try:
        plot({Path(log).name: summary.epochs for log, summary in summaries.items()}, options.output)
    except ValueError as error:
        raise UsageError(f"{options.output}: {error}") from error
    if options.json:
        write_json({"picture": options.output})
    else:
        print(escaped(options.output))
    return AGREES
