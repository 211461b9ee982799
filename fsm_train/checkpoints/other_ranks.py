"""The parts that one rank goes on with, also where there are other ranks than wrote the checkpoint.

Rule of this file: at the end of an epoch the data are shared anew, so a rank may go on with what another one had. In
the middle of one it may not: each has its place in its share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import attrs

from ..core.errors import CheckpointError, WorkloadError
from ..core.phase import Junction, Phase
from ..core.state import State
from ..data.plain_generators import new_for_rank
from .manifest import Checkpoint, list_folder, verified
from .own_parts import with_own_parts
from .rank_names import name_of_rank
from .reading import read_rank_file
from .shards import METADATA
from .summary import control_in
from .writing import Parts


def is_between_epochs(state: State) -> bool:
    """Whether the next batch is the first of an epoch: the data of the one before are over, or none has begun."""
    return state.batches_over or state.resume_at in (None, Phase.EPOCH_END)


def parts_of_rank(checkpoint: Checkpoint, state: State, parts: Parts, rank: int, ranks: int) -> tuple[State, Parts]:
    """What this rank of so many goes on with: the state, with notes on what is not as it was, and its parts.

    Args:
        checkpoint: what is read, and verified, of other ranks.
        state: of the checkpoint.
        parts: of rank 0; what is nested in them is changed.
        rank, ranks: the number of this one, and how many there are now.

    Raises:
        CheckpointError: the file of a rank is damaged.
        WorkloadError: there are other ranks than there were, and they were not between two epochs.
    """
    others = ranks != checkpoint.ranks
    if others:
        _check_between_epochs(checkpoint, state, parts, ranks)
    if rank == 0:
        for gone in range(ranks, checkpoint.ranks):  # which nobody reads
            with verified(checkpoint, name_of_rank(gone)):
                pass
    own = read_rank_file(checkpoint, rank) if 0 < rank < checkpoint.ranks else None
    try:
        parts = parts if own is None else with_own_parts(parts, own)
        if not others:
            return state, parts
        counted = parts.get("ranks", {"counted": 1.0})["counted"]
        if rank >= checkpoint.ranks:
            parts["generators"], counted = new_for_rank(parts["generators"], rank), 0.0
    except Exception as error:  # of what is nested in another way
        raise CheckpointError(f"what rank {rank} has in {checkpoint.path} is not what a rank saves: {error}") from error
    parts |= {"loader": None, "ranks": {"unreduced": False, "counted": counted}}
    return attrs.evolve(state, notes=(*state.notes, *_notes(checkpoint.ranks, ranks, state))), parts


def _check_between_epochs(checkpoint: Checkpoint, state: State, parts: Parts, ranks: int) -> None:
    if not is_between_epochs(state):
        where = "in the middle of an epoch, where each rank has a place in its share of the data"
    elif parts.get("ranks", {}).get("unreduced"):
        where = "while gradients of each rank waited for a step"
    else:
        return
    there, here = _count(checkpoint.ranks), _count(ranks)
    kind = "fsdp" if METADATA in checkpoint.files else "ddp"
    spell = f'torchrun and Supervised(…, parallel="{kind}") do' if checkpoint.ranks > 1 else "python alone does"
    former = next(_at_ends_of_epochs(checkpoint), None)
    or_from = "" if former is None else f", or go on from the end of an epoch: restore({str(former)!r}, …)"
    raise WorkloadError(
        f"{checkpoint.path} was saved on {there}, {where}, and this is a training on {here}. Start it on {there}, as "
        f"{spell}{or_from}"
    )


def _at_ends_of_epochs(checkpoint: Checkpoint) -> Iterator[Path]:
    """The other checkpoints in its folder that any number of ranks can go on from, the newest first."""
    for other in list_folder(checkpoint.path.parent).checkpoints:
        with contextlib.suppress(CheckpointError):
            if other.path != checkpoint.path and is_between_epochs(control_in(other)):
                yield other.path


def _notes(before: int, now: int, state: State) -> Iterator[str]:
    """What is not as it was: the same sentences on all ranks."""
    begins = f"the number of ranks: it was {before} and is {now}, and they share the data anew"
    if now > before:
        new, draw = (f"rank {before}", "draws") if now == before + 1 else (f"ranks {before} to {now - 1}", "draw")
        yield f"{begins}; {new} {draw} from new generators, which follow from those of rank 0"
        return
    gone = f"rank {now}" if before == now + 1 else f"ranks {now} to {before - 1}"
    yield f"{begins}; what {gone} had alone is left out, such as its generators"
    if state.resume_at in (Phase.VALID_END, Junction.VALID_ABANDONED):
        yield f"the training metrics of the epoch: the batches of {gone} are not in them"


def _count(ranks: int) -> str:
    return f"{ranks} ranks" if ranks > 1 else "one rank"
