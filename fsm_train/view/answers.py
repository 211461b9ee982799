"""What is found out before a page shows it: whether runs replay, where they differ, and what would have been.

Rule of this file: nothing is decided here. The answers are those of the event log, each with the row that it is about.
"""

from __future__ import annotations

from os import PathLike, fspath

from ..core.errors import FsmTrainError
from ..encoding import encode
from ..eventlog.comparison import Difference, diff
from ..eventlog.replayer import replay
from ..eventlog.sweeps import Sweep
from ..wording import pluralize, short_number
from .columns import Packed, shown, shown_text
from .packing import PackedRun

Log = str | PathLike[str]


def replay_verdict(log: Log, run: PackedRun) -> Packed:
    """Whether every decision of the log is made again by its callbacks; "unknown" where they cannot be made from it."""
    try:
        replayed = replay(log)
    except FsmTrainError as error:
        return {
            "verdict": "unknown",
            "text": shown_text(f"not replayed: {_without_path(error, log, run)}"),
            "row": None,
        }
    if replayed.divergence is None:
        text = f"replayed: every decision agrees, on {pluralize(replayed.lines, 'line')}"
        return {"verdict": "agrees", "text": text, "row": None}
    row = run.row_of(replayed.divergence.line)
    return {"verdict": "differs", "text": shown_text(f"replayed: differs at {replayed.divergence}"), "row": row}


def _without_path(error: FsmTrainError, log: Log, run: PackedRun) -> str:
    """The sentence of an error with the name of the run: a page may be sent to others, who need not know more."""
    return str(error).replace(fspath(log), run.name)


def difference(log: Log, run: PackedRun, other: Log, other_run: PackedRun) -> Packed | None:
    """The first difference of two runs, and what happened then; None if there is none."""
    found = diff(log, other)
    return None if found is None else _packed_difference(found, run, other_run)


def _packed_difference(found: Difference, run: PackedRun, other_run: PackedRun) -> Packed:
    a, b = found.lines
    return {
        "kind": found.kind,
        "what": shown_text(found.what),
        "a": shown(found.a),
        "b": shown(found.b),
        "rows": [run.row_of(a), other_run.row_of(b)],
        "then": None if found.then is None else _packed_difference(found.then, run, other_run),
    }


def packed_sweep(sweep: Sweep, run: PackedRun) -> list[Packed]:
    """The verdict of each setting, at the row at which it falls."""
    return [
        {
            "setting": shown_text(", ".join(f"{name}={value}" for name, value in setting.items())),
            "label": shown_text(", ".join(map(str, setting.values()))),
            "verdict": answer.verdict,
            "stopped": answer.stopped_at,
            "row": run.row_of(answer.line),
            "why": shown_text(answer.why),
            "best": None
            if answer.best is None
            else {
                "monitor": shown_text(answer.best.monitor),
                "value": encode(answer.best.value),
                "text": short_number(answer.best.value, 6),
                "epoch": answer.best.epoch,
            },
        }
        for setting, answer in sweep
    ]
