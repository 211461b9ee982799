"""`fsm-train checkpoints FOLDER`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from ..checkpoints.manifest import Verification, verify_all
from ..core.errors import NoCheckpointError
from ..encoding import Json
from ..wording import escaped
from .output import write_json
from .status import AGREES, DIFFERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the folder that they are in, or one of them")


def run(options: argparse.Namespace) -> int:
    checkpoints = verify_all(Path(options.folder))
    if not checkpoints:
        raise NoCheckpointError(f"there is no checkpoint in {options.folder}")
    newest_good = next((checkpoint for checkpoint in checkpoints if not checkpoint.trouble), None)
    if options.json:
        newest_name = None if newest_good is None else newest_good.path.name
        write_json({"checkpoints": list(map(as_json, checkpoints)), "newest_good": newest_name})
    else:
        width = max(len(escaped(checkpoint.path.name)) for checkpoint in checkpoints)
        for checkpoint in checkpoints:
            # A training resumes from the newest good one, also where a newer one is damaged.
            mark = "  newest good" if checkpoint is newest_good else ""
            print(f"{escaped(checkpoint.path.name):<{width}}  {as_text(checkpoint)}{mark}")
            if checkpoint.trouble:
                print(f"  {escaped(checkpoint.trouble)}")
    return DIFFERS if any(checkpoint.trouble for checkpoint in checkpoints) else AGREES


def as_json(item: Verification) -> dict[str, Json]:
    """A checkpoint as data; what stands in its manifest is null where that cannot be read."""
    checkpoint = item.checkpoint
    return {
        "name": item.path.name,
        "good": not item.trouble,
        "trouble": item.trouble,
        "iteration": None if checkpoint is None else checkpoint.save_point.iteration,
        "step": None if checkpoint is None else checkpoint.save_point.step,
        "written": None if checkpoint is None else checkpoint.save_point.written,
        "bytes": None if checkpoint is None else checkpoint.size,
    }


def as_text(item: Verification) -> str:
    """A checkpoint as one line without its name: step, time, size, and whether it is good."""
    if item.checkpoint is None:
        return "damaged"
    place = item.checkpoint.save_point
    written = datetime.fromtimestamp(place.written, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    text = f"step {place.step:>8}  {written}  {item.checkpoint.size / 1e6:10.1f} MB"
    return f"{text}  {'damaged' if item.trouble else 'good'}"
