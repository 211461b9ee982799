"""`fsm-train view LOG ... [-o PAGE] [--what-if CALLBACK.SETTING=VALUES]`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from ..view.answers import difference, packed_sweep, replay_verdict
from ..view.building import is_page, page
from ..view.machine import packed_machine
from ..view.packing import packed_run
from ..wording import escaped
from .output import write_json
from .status import AGREES, UsageError
from .what_if import sweep_of

MAX_RUNS = 8
"""The most runs on a page: as many as it has colours for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG")
    text = "the page, in the place of an older one; by default beside the first log, with the suffix .html"
    parser.add_argument("-o", "--output", help=text)
    text = "mark on the curves when the training would have ended, as what-if says it; can be given several times"
    parser.add_argument("--what-if", action="append", default=[], metavar="CALLBACK.SETTING=VALUES", help=text)


def run(options: argparse.Namespace) -> int:
    if len(options.logs) > MAX_RUNS:
        raise UsageError(f"these are {len(options.logs)} logs, and a page shows at most {MAX_RUNS} beside each other")
    output = Path(options.output or _beside(options.logs[0]))
    if any(output.exists() and output.samefile(log) for log in options.logs):
        raise UsageError(f"{output} is one of the logs: give another -o")
    if output.is_file() and not is_page(output):
        raise UsageError(f"{output} is there, and no page of fsm-train view: give another -o, or remove it")
    runs = [packed_run(log, name) for log, name in zip(options.logs, _names(options.logs), strict=True)]
    packed = [
        {
            **run.packed(),
            "replay": replay_verdict(log, run),
            "what_if": packed_sweep(sweep_of(log, options.what_if), run) if options.what_if else [],
        }
        for log, run in zip(options.logs, runs, strict=True)
    ]
    differences = [
        difference(options.logs[0], runs[0], *other) for other in zip(options.logs[1:], runs[1:], strict=True)
    ]
    data = {"runs": packed, "machine": packed_machine(), "differences": differences}
    text = page(data, " · ".join(run.name for run in runs))
    output.write_text(text, encoding="utf-8")
    if options.json:
        write_json({"page": str(output), "bytes": len(text.encode()), "lines": [len(run.numbers) for run in runs]})
    else:
        print(escaped(output))
    return AGREES


def _beside(log: str) -> Path:
    path = Path(log)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl") + ".html")


def _names(logs: list[str]) -> list[str]:
    """What the page calls the runs: the names of the files, or the whole paths of those that share one."""
    counts = Counter(Path(log).name for log in logs)
    return [Path(log).name if counts[Path(log).name] == 1 else log for log in logs]
