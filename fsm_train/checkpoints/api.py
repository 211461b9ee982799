"""Saving a training as a checkpoint, and restoring it.

What cannot be saved or restored exactly is in `State.notes`, and in the log.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Protocol

import attrs

from ..core.arguments import check_path, check_workload
from ..core.commands import SaveCheckpoint
from ..core.errors import CheckpointError, NoCheckpointError, WorkloadError
from ..core.failing import whole_state
from ..core.history import History
from ..core.runs import SAVED_AT
from ..core.state import State, hyper_read
from ..core.workload import Workload
from ..worlds.registry import carries_out_by_default
from ..worlds.rows import Topic
from .beside import ToWrite, copies
from .beside import given as given_parts
from .folder import check_name
from .history_files import epochs_in_files, read_history
from .manifest import Checkpoint, SavePoint, Score, is_one, list_folder, manifest_of, verified
from .other_ranks import parts_of_rank
from .peers import Peers, common_notes, failure_text
from .reading import read_files
from .restoring_together import Chosen, Trial, follow_restoring, given, lead_restoring
from .saves import Saves
from .shard_reading import Like, put_shards_into, whole
from .shard_writing import taken_out
from .state_json import control_of, state_of
from .writing import Parts, find_unsafe
from .writing_together import Lead, follow

_logger = logging.getLogger("fsm_train")


class Checkpointable(Workload, Protocol):
    """A workload that can be saved and restored.

    Attributes:
        state: the State in which the present command is carried out.
        saves: the folders that the present call of `run` writes to, and what became of each save.
    """

    state: State | None
    saves: Saves

    @property
    def peers(self) -> Peers | None:
        """The ranks that train together, which write and restore one checkpoint; None for a training on one."""
        return None

    def like(self, parts: Parts) -> Like:
        """How this training shares out the tensors of these parts of a checkpoint."""
        return whole

    def parts_to_save(self, state: State) -> tuple[Parts, tuple[str, ...]]:
        """All that resuming takes beside the state: tensors and plain values, by part.

        Returns them with notes: a sentence for each thing that cannot be restored exactly.
        """
        ...

    def restore_parts(self, parts: Parts, state: State) -> tuple[str, ...]:
        """Restore what `parts_to_save` gave, saved with this state. Notes on what is not exactly as it was.

        Raises:
            CheckpointError: they are not what `parts_to_save` gives. Nothing of the workload has changed.
            RuntimeError, WorkloadError: the workload has another model, optimizer or loss.
        """
        ...


@carries_out_by_default(SaveCheckpoint)
def save(work: Checkpointable, command: SaveCheckpoint) -> None:
    """Write a checkpoint, and then remove those that the command drops.

    If the disk refuses, that is a warning and a note: the training continues, and older checkpoints are untouched.
    That it failed is the fact `unsaved:NAME`, of the saver that the command is `by`. Several ranks write one together:
    what one cannot write, none has written.

    Raises:
        ValueError: the name is none of a folder.
        WorkloadError: a training cannot resume from this phase, or a part is no tensor and no plain value.
    """
    state = work.state
    assert state is not None
    work.saves.settle(command.by, command.folder)
    work.saves.unsaved.add(command.by)  # until it is on disk: whatever ends this, Ctrl-C too
    check_name(command.name)
    peers: Peers | None = getattr(work, "peers", None)
    if peers is not None and peers.lost:
        _not_saved(work, command, "ranks that no longer meet, since one has failed, write none together")
        return
    inexact: tuple[str, ...] = ()
    if state.failure is not None:
        state, inexact = whole_state(state)
    elif state.phase not in SAVED_AT:
        allowed = ", ".join(phase.value for phase in SAVED_AT)
        raise WorkloadError(f"a checkpoint cannot be written at {state.phase.value}: a training resumes from {allowed}")
    parts, notes = work.parts_to_save(state)
    parts, shares = taken_out(parts)
    if unsafe := find_unsafe(parts):
        raise WorkloadError(
            f"{unsafe}, which cannot be saved: a checkpoint holds tensors and plain values, so that loading it "
            "runs no code"
        )
    elapsed = work.read({"elapsed"}, state)["elapsed"]
    notes = (*inexact, *notes)
    if peers is not None:
        notes = common_notes(peers.tell(Topic.WRITE, notes))
    control = control_of(attrs.evolve(state, elapsed=elapsed, notes=notes), epochs_in_files(len(state.history)))
    score = score_of(command, state, measured_with(command.monitor or "", parts))
    save_point = SavePoint(state.iteration, state.step, time.time(), command.drop, score)
    files = _Files(work.saves, command, control, save_point, state.history)
    if command.beside and work.saves.in_run:
        told_beside = None if peers is None else peers.beside()
        write = partial(files.write, copies(parts, shares), told_beside)
        work.saves.begin(command.by, command.folder, write, partial(_ended, work, command))
    else:
        _ended(work, command, files.write(given_parts(parts, shares), peers))


@attrs.frozen(eq=False)
class _Files:
    """What is written into the folder of one checkpoint, beside its parts."""

    saves: Saves
    command: SaveCheckpoint
    control: bytes
    save_point: SavePoint
    history: History[Mapping[str, float]]

    def write(self, to_write: ToWrite, peers: Peers | None) -> str:
        """Write all of it, or what this rank writes. What could not be done, in words; empty if it is in its place."""
        if peers is not None and peers.rank:
            return follow(peers, to_write)
        lead = Lead(peers)
        try:
            with self.saves.folder(Path(self.command.folder)) as held:
                parts, lead.shares = to_write()
                held.write(self.command.name, self.control, parts, self.save_point, self.history, lead)
            lead.ended()
        except Exception as error:  # of the disk, of a device, of a thread, or another run writes there
            lead.failed(error)
            if peers is not None and peers.lost:
                raise
            return lead.trouble or failure_text(error)
        return ""


def _ended(work: Checkpointable, command: SaveCheckpoint, trouble: str) -> None:
    """Note what became of a checkpoint."""
    if trouble:
        _not_saved(work, command, trouble)
    else:
        work.saves.unsaved.discard(command.by)


def _not_saved(work: Checkpointable, command: SaveCheckpoint, trouble: str) -> None:
    """Note and warn that this checkpoint could not be written."""
    trouble = f"the checkpoint {command.name} could not be written to {Path(command.folder)}: {trouble}"
    work.saves.failed(command.by, trouble)
    warnings.warn(
        f"{trouble}; the training continues, and the checkpoints that were there are untouched",
        RuntimeWarning,
        stacklevel=4,
    )


def measured_with(metric: str, parts: Parts) -> str:
    """The name of the average that a metric of the last validation was measured with, or "model"."""
    by = {
        prefix: weights for prefix, weights in parts.get("measured_by", {}).items() if metric.startswith(f"{prefix}_")
    }
    return str(by[max(by, key=len)] if by else parts.get("measured_with", "model"))


def score_of(command: SaveCheckpoint, state: State, measured_with: str) -> Score | None:
    """The score that the manifest records. Training metrics are those of the model, whatever a validation uses."""
    if command.monitor is None:
        return None
    value = state.metrics.get(command.monitor)
    weights = measured_with if command.monitor.startswith("valid_") else "model"
    return Score(command.monitor, command.mode, value if value is not None and isfinite(value) else None, weights)


def restore(path: str | PathLike[str], workload: Checkpointable) -> State:
    """Restore model, optimizer and everything else of a checkpoint; the state to resume from.

    What cannot be restored exactly is in the `notes` of the state, and logged. Where several ranks train, all call
    it, and all continue from the same checkpoint; other ranks than wrote it may go on from the end of an epoch.

    >>> import torch
    >>> from fsm_train import Supervised, run, start
    >>> from fsm_train.callbacks import checkpoint
    >>> def workload():
    ...     model = torch.nn.Linear(3, 1)
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     return Supervised(model, optimizer, torch.nn.MSELoss(), [(torch.zeros(4, 3), torch.ones(4, 1))])
    >>> final = run(start(workload(), epochs=2), [checkpoint("checkpoints")])
    >>> restore("checkpoints", workload()).epoch
    2

    Args:
        path: a checkpoint, or a folder of them, of which the newest good one is taken. A warning
            names each damaged one.
        workload: a `Supervised` of the same model, optimizer and loaders as the one that was saved.

    Raises:
        NoCheckpointError: there is no checkpoint yet.
        CheckpointError: there is no good one, or the named one is damaged.
        TypeError: the path is no path, or the workload no workload.
        RuntimeError, WorkloadError: the model, the optimizer or the loss is another one than was saved, or there are
            other ranks, and it was saved in the middle of an epoch.
        PeerError: another rank could not restore it for such a reason.
    """
    check_path(path, "the path of restore", "restore('checkpoints', work)")
    peers: Peers | None = getattr(workload, "peers", None)
    attempt = partial(_restored, workload, peers)
    if peers is not None and peers.rank:
        return follow_restoring(peers, attempt)
    choose = partial(_first_good, Path(path), workload)
    state, problems = choose(attempt) if peers is None else lead_restoring(peers, choose, attempt)
    if problems:
        warnings.warn(problems, RuntimeWarning, stacklevel=2)
    return state


def _restored(workload: Checkpointable, peers: Peers | None, chosen: Chosen) -> State:
    """The state of this checkpoint, with the workload brought to it, on all ranks or on none.

    Raises:
        CheckpointError: it is damaged, for this rank or for another.
    """
    trial = Trial(peers)
    like: Callable[[Parts], Like] = getattr(workload, "like", lambda parts: whole)

    def read_own() -> tuple[Checkpoint, State, Parts]:
        checkpoint = chosen()
        state, parts = parts_of_rank(checkpoint, *read(checkpoint), trial.rank, trial.ranks)
        put_shards_into(checkpoint, parts, like(parts), rank=trial.rank, ranks=trial.ranks)
        if state.has_valid != workload.has_valid:
            was, now_is = ("with", "without") if state.has_valid else ("without", "with")
            raise WorkloadError(f"what was saved was trained {was} validation data, and this workload is {now_is}")
        return checkpoint, state, parts

    def restore_own() -> tuple[str, ...]:
        try:
            return workload.restore_parts(parts, state)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error

    (checkpoint, state, parts), _ = trial.all_could(read_own)
    _, noted = trial.all_could(restore_own, tell=list)
    notes = dict.fromkeys((*state.notes, *common_notes(noted)))
    for note in notes:
        _logger.warning("the training continues, but not exactly as it was saved: %s", note)
    hyper = hyper_read(state.hyper, workload.hyper())
    return attrs.evolve(state, hyper=hyper, workload=workload, notes=tuple(notes))


def read(checkpoint: Checkpoint) -> tuple[State, Parts]:
    """The state and the parts of a checkpoint, verified.

    Raises:
        CheckpointError: it is damaged.
    """
    control, parts = read_files(checkpoint)
    try:
        return state_of(control, read_history(checkpoint.files, partial(verified, checkpoint))), parts
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def _first_good(chosen: Path, workload: Checkpointable, attempt: Callable[[Chosen], State]) -> tuple[State, str]:
    """What `attempt` gives of this checkpoint, or of the newest one in the folder that is as it was written.

    With what is to be said of newer ones.
    """
    one = manifest_of(chosen) if is_one(chosen) else None
    check_workload(workload, f"restore({str(chosen)!r}, {{}})")
    if one is not None:
        return attempt(given(one)), ""
    problems: list[str] = []
    tried: set[tuple[Path, int]] = set()
    while True:
        there = list_folder(chosen)
        candidates = [c for c in there.checkpoints if (c.path, c.number) not in tried]
        for candidate in candidates:
            tried.add((candidate.path, candidate.number))
            try:
                state = attempt(given(candidate))
            except CheckpointError as error:
                problems.append(str(error))
                continue
            said = [*there.problems, *problems]
            return state, f"{'; '.join(said)}: continuing from {candidate.path}" if said else ""
        if not candidates:  # else a training under way may have dropped them, and written others
            break
    if problems := [*there.problems, *problems]:
        raise CheckpointError("; ".join(problems))
    raise NoCheckpointError(f"there is no checkpoint in {chosen}")
