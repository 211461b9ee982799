"""`fsm-train replay LOG`."""

from __future__ import annotations

import argparse

import attrs

from ..eventlog.replayer import replay
from ..wording import escaped, pluralize
from .callbacks_option import add_callbacks_option, import_callbacks
from .output import write_json
from .status import AGREES, DIFFERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")
    add_callbacks_option(parser)


def run(options: argparse.Namespace) -> int:
    replayed = replay(options.log, import_callbacks(options.callbacks) if options.callbacks else None)
    if options.json:
        divergence = None if replayed.divergence is None else attrs.asdict(replayed.divergence)
        write_json({"ok": replayed.ok, "lines": replayed.lines, "divergence": divergence})
    elif replayed.ok:
        state = replayed.state
        where = f"after {pluralize(state.epoch, 'epoch')} and {pluralize(state.step, 'step')}"
        print(f"agrees: {pluralize(replayed.lines, 'line')}, to {state.phase.value} {where}")
    else:
        print(f"differs: {escaped(replayed.divergence)}")
    return AGREES if replayed.ok else DIFFERS
