"""Which checkpoint of a folder is the best, the last, or the one of a name. Torch-free: only manifests are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..core.errors import CheckpointError, NoCheckpointError
from .manifest import Checkpoint, Score, is_one, list_folder, manifest_of


def candidates(where: Path, which: str) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints that `which` means, the first choice first, and what is wrong with damaged manifests.

    Args:
        where: a checkpoint, or a folder of them.
        which: "best", "last", or a name. Of one checkpoint it may only be these two or its own name.

    Raises:
        NoCheckpointError: there is none, or none of that name.
        CheckpointError: the one of that name is damaged; no checkpoint has a score, or they have scores of several
            metrics.
    """
    if is_one(where):
        if which not in ("best", "last", where.name):
            raise NoCheckpointError(f"{where} is one checkpoint, and not a folder with one called {which!r}")
        return [manifest_of(where)], []
    there = list_folder(where)
    found, problems = there.checkpoints, there.problems
    if not found:
        raise (
            CheckpointError("; ".join(problems))
            if problems
            else NoCheckpointError(f"there is no checkpoint in {where}")
        )
    named = [checkpoint for checkpoint in found if checkpoint.path.name == which]
    scored = [(score, checkpoint) for checkpoint in found if (score := checkpoint.save_point.score) is not None]
    if which == "best" and (scored or not named):
        return _ranked(where, scored, problems), problems
    if which == "last" and not named:
        return found, problems
    if not named:
        if where / which in there.damaged:
            raise CheckpointError(there.damaged[where / which])
        names = ", ".join(checkpoint.path.name for checkpoint in found)
        raise NoCheckpointError(f"there is no checkpoint {which!r} in {where}: there are {names}")
    return named, []


def _ranked(where: Path, scored: list[tuple[Score, Checkpoint]], problems: list[str]) -> list[Checkpoint]:
    """By score, the best first; of equal ones the earliest, as `checkpoint` keeps it."""
    monitors = sorted({f"{score.monitor} ({score.mode})" for score, _ in scored})
    if len(monitors) > 1:
        raise CheckpointError(
            f"which is the best in {where}? Its checkpoints were chosen by {' and by '.join(monitors)}: name one, "
            'which="epoch-00001", or write them to a folder for each metric'
        )
    measured = [(score, checkpoint) for score, checkpoint in scored if score.value is not None]
    if not measured:
        also = f" ({'; '.join(problems)})" if problems else ""
        raise CheckpointError(
            f"no checkpoint in {where} has a score{also}: checkpoint(folder, monitor='valid_loss') records one. "
            'which="last" is the newest'
        )
    return _sorted(measured)


def _sorted(measured: list[tuple[Score, Checkpoint]]) -> list[Checkpoint]:
    return [checkpoint for _, checkpoint in sorted(measured, key=lambda pair: (-pair[0].rank, pair[1].number))]


def best_of(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The best by score, of equal ones the earliest; None if none has a score, or they were chosen by several metrics.

    It is the one that `which="best"` means.
    """
    scored = [(score, checkpoint) for checkpoint in checkpoints if (score := checkpoint.save_point.score) is not None]
    measured = [(score, checkpoint) for score, checkpoint in scored if score.value is not None]
    if not measured or len({(score.monitor, score.mode) for score, _ in scored}) > 1:
        return None
    return _sorted(measured)[0]
