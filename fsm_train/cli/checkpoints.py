"""`fsm-train checkpoints FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from ..checkpoints.choice import best_of
from ..checkpoints.manifest import Checkpoint, Score, Verification, looks_like_checkpoint, verify_all
from ..checkpoints.summary import epoch_of
from ..core.errors import NoCheckpointError
from ..encoding import Json
from ..wording import aligned_number, escaped
from .output import write_json
from .status import AGREES, DIFFERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the folder that they are in, or one of them")


def run(options: argparse.Namespace) -> int:
    folder = Path(options.folder)
    verifications = verify_all(folder)
    if not verifications:
        raise NoCheckpointError(f"there is no checkpoint in {options.folder}")
    good = [item.checkpoint for item in verifications if item.checkpoint is not None and not item.trouble]
    # A training resumes from the newest good one, also where a newer one is damaged.
    newest = good[0] if good else None
    best = None if looks_like_checkpoint(folder) else best_of(good)  # of one alone it would say nothing
    if options.json:
        listed = [as_json(item) for item in verifications]
        write_json({"checkpoints": listed, "newest_good": _name(newest), "best": _name(best)})
    else:
        for item, line in zip(verifications, as_lines(verifications), strict=True):
            marks = [text for text, one in (("newest good", newest), ("best", best)) if one and one is item.checkpoint]
            print("  ".join([line, *([", ".join(marks)] if marks else [])]))
            if item.trouble:
                print(f"  {escaped(item.trouble)}")
    return DIFFERS if any(item.trouble for item in verifications) else AGREES


def _name(checkpoint: Checkpoint | None) -> str | None:
    return None if checkpoint is None else checkpoint.path.name


def as_json(item: Verification) -> dict[str, Json]:
    """A checkpoint as data; what is not known is null."""
    checkpoint = item.checkpoint
    point = None if checkpoint is None else checkpoint.save_point
    return {
        "name": item.path.name,
        "good": not item.trouble,
        "trouble": item.trouble,
        "iteration": None if point is None else point.iteration,
        "step": None if point is None else point.step,
        "epoch": None if checkpoint is None else epoch_of(checkpoint),
        "score": None if point is None or point.score is None else attrs.asdict(point.score),
        "written": None if point is None else point.written,
        "bytes": None if checkpoint is None else checkpoint.size,
        "ranks": None if checkpoint is None else checkpoint.ranks,
    }


def as_lines(items: Sequence[Verification]) -> list[str]:
    """The checkpoints as lines: name, step, epoch, metric, ranks, time, size, and whether it is good.

    The columns of epoch, metric and ranks are there if one of them has these.
    """
    known = [(item, item.checkpoint) for item in items]
    names = _column([escaped(item.path.name) for item, _ in known])
    numbers = [None if checkpoint is None else epoch_of(checkpoint) for _, checkpoint in known]
    epochs = _column(["" if number is None else f"epoch {number:>5}" for number in numbers])
    scores = _column([_score(checkpoint.save_point.score) if checkpoint else "" for _, checkpoint in known])
    ranks = _column(
        [f"{checkpoint.ranks} ranks" if checkpoint and checkpoint.ranks > 1 else "" for _, checkpoint in known]
    )
    lines = []
    for (item, checkpoint), name, *columns in zip(known, names, epochs, scores, ranks, strict=True):
        if checkpoint is None:
            lines.append(f"{name}  damaged")
            continue
        point = checkpoint.save_point
        written = datetime.fromtimestamp(point.written, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        size, state = f"{checkpoint.size / 1e6:10.1f} MB", "damaged" if item.trouble else "good"
        lines.append("  ".join([name, f"step {point.step:>8}", *filter(None, columns), written, size, state]))
    return lines


def _column(texts: Sequence[str]) -> list[str]:
    """The texts, all as wide as the widest."""
    width = max(map(len, texts))
    return [f"{text:<{width}}" for text in texts]


def _score(score: Score | None) -> str:
    if score is None:
        return ""
    value = "not measured" if score.value is None else aligned_number(float(score.value))
    return escaped(f"{score.monitor} {value}{'' if score.weights == 'model' else f' ({score.weights})'}")
