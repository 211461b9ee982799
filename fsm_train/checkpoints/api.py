"""Saving a training, and going on from what was saved.

What could not be saved or brought back exactly is said: in `State.notes`, and in the log.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import orjson

from ..core.commands import SaveCheckpoint
from ..core.errors import CheckpointError, NoCheckpointError, WorkloadError
from ..core.phase import Flag, Phase
from ..core.runs import SAVED_AT, resume_place
from ..core.state import COUNTERS, Plan, State
from ..core.table import RESUMES_AT
from ..core.values import NO_FACTS, FrozenMap, SavedMemory
from ..data.position import Left, keeps_its_place
from ..encoding import CannotDecodeError, decode, encode
from . import files
from .manifest import MANIFEST, Checkpoint, Place, find_all, manifest_of
from .parts import as_beginning, as_generators, bring_back, parts_of

if TYPE_CHECKING:
    from ..supervised.workload import Supervised

_logger = logging.getLogger("fsm_train")

_COUNTERS = (*COUNTERS, "fetched")


@attrs.frozen
class FromFile(SavedMemory):
    """A memory as JSON."""

    callback: str
    json: Any

    def decode_with(self, classes: Mapping[str, type]) -> object:
        try:
            return decode(self.json, classes)
        except CannotDecodeError as error:
            raise CheckpointError(
                f"the memory of the callback {self.callback!r} does not fit it: {error}. Records are made again of "
                "the classes in its initial memory, and in the type of its second parameter. With another name= the "
                "callback begins afresh"
            ) from error


def save(work: Supervised, command: SaveCheckpoint) -> None:
    """Write a checkpoint, and then drop those that are not needed any more.

    When the disk does not let it, that is a warning: the training goes on, and what was there stays.
    """
    state = work.state
    assert state is not None
    if state.phase not in SAVED_AT:
        allowed = ", ".join(phase.value for phase in SAVED_AT)
        raise WorkloadError(f"a checkpoint cannot be written at {state.phase.value}: a training goes on from {allowed}")
    if work.precision is not None:
        work.precision.go_on(work.gradients())
    parts, notes = parts_of(work, state)
    if found := files.unsafe(parts):
        raise WorkloadError(
            f"{found}, which cannot be saved: a checkpoint holds tensors and plain values, so that loading it "
            "runs no code"
        )
    elapsed = work.read({"elapsed"}, state)["elapsed"]
    control = control_of(attrs.evolve(state, elapsed=elapsed, notes=notes))
    folder, place = Path(command.folder), Place(state.iteration, state.step, time.time(), command.drop)
    try:
        files.write(folder, command.name, control, parts, place)
    except OSError as error:
        warnings.warn(
            f"the checkpoint {command.name} could not be written to {folder}: {error}; the training goes on, "
            "and the checkpoints that were there are untouched",
            RuntimeWarning,
            stacklevel=2,
        )


def restore(path: str | PathLike[str], workload: Supervised) -> State:
    """The state to go on from, with model, optimizer and all else in the workload as they were saved.

    What cannot be brought back exactly is in the `notes` of the state, and logged.

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
        path: a checkpoint, or a folder of them, of which the newest good one is taken. One that is
            damaged is named in a warning.
        workload: made as the one that was saved: the same model, optimizer and loaders.

    Raises:
        NoCheckpointError: there is no checkpoint yet.
        CheckpointError: there is no good one, or the one that was named is damaged.
        RuntimeError, WorkloadError: the model, the optimizer or the loss is another one than was saved.
    """
    chosen = Path(path)
    if not chosen.exists():
        raise NoCheckpointError(f"there is no checkpoint in {chosen}: No such file or directory")
    if (chosen / MANIFEST).exists() or not chosen.is_dir():
        state, parts = _read(manifest_of(chosen))
    else:
        state, parts = _newest_good(chosen)
    if state.has_valid != workload.has_valid:
        was, now_is = ("with", "without") if state.has_valid else ("without", "with")
        raise WorkloadError(f"what was saved was trained {was} validation data, and this workload is {now_is}")
    notes = dict.fromkeys((*state.notes, *bring_back(workload, parts)))
    for note in notes:
        _logger.warning("what goes on is not exactly what was saved: %s", note)
    own = workload.own_generators()
    if parts["loader"] is not None and keeps_its_place(workload.train):
        workload.train.load_state_dict(parts["loader"])  # type: ignore[attr-defined]
    # The rest of it waits for the run to begin: until then others may draw random numbers.
    workload.left = Left(state.iteration, as_generators(parts["generators"], own), from_file=True)
    workload.beginning = as_beginning(parts["beginning"], own)
    return attrs.evolve(state, workload=workload, notes=tuple(notes))


def _read(checkpoint: Checkpoint) -> tuple[State, dict[str, Any]]:
    control, parts = files.read(checkpoint)
    try:
        return state_of(control), parts
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def _newest_good(folder: Path) -> tuple[State, dict[str, Any]]:
    there, damaged = find_all(folder)
    trouble = list(damaged.values())
    for candidate in there:
        try:
            found = _read(candidate)
        except CheckpointError as error:
            trouble.append(str(error))
            continue
        if trouble:
            warnings.warn(f"{'; '.join(trouble)}: going on from {candidate.path}", RuntimeWarning, stacklevel=3)
        return found
    if trouble:
        raise CheckpointError("; ".join(trouble))
    raise NoCheckpointError(f"there is no checkpoint in {folder}")


def control_of(state: State) -> bytes:
    """The state as JSON, exactly, without what belongs to one moment only."""
    resume_at = resume_place(state)
    return orjson.dumps(
        {
            **{name: getattr(state, name) for name in _COUNTERS},
            "reason": encode(state.reason),
            "plan": attrs.asdict(state.plan),
            "flags": state.flags.value,
            "metrics": encode(dict(state.metrics)),
            "history": encode(tuple(dict(metrics) for metrics in state.history)),
            "hyper": encode(dict(state.hyper)),
            "memory": {name: _memory(value) for name, value in state.memory.items()},
            "resume_at": None if resume_at is None else encode(resume_at),
            "has_valid": state.has_valid,
            "batches_over": state.batches_over,
            "elapsed": encode(state.elapsed),
            "notes": encode(state.notes),
        },
        option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2,
    )


def _memory(value: object) -> Any:
    return value.json if isinstance(value, FromFile) else encode(value)  # of a callback that is not here


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.60} is no whole number")
    return value


def state_of(control: bytes) -> State:
    """The state that `control_of` was given, as one between two runs.

    Memories wait for their callbacks: only those know the classes of their records.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        said: Mapping[str, Any] = orjson.loads(control)
        resume_at = None if said["resume_at"] is None else decode(said["resume_at"])
        if resume_at not in (None, *RESUMES_AT.values()):
            raise CannotDecodeError(f"it resumes at {resume_at!r}")
        counters: dict[str, Any] = {name: _whole(said[name]) for name in _COUNTERS}
        return State(
            Phase.DONE if resume_at is None else Phase.SUSPENDED,
            Plan(**said["plan"]),
            **counters,
            reason=decode(said["reason"]),
            flags=Flag(said["flags"]),
            facts=NO_FACTS,
            metrics=FrozenMap(decode(said["metrics"])),
            history=tuple(FrozenMap(metrics) for metrics in decode(said["history"], depth=1000)),
            hyper=FrozenMap(decode(said["hyper"])),
            memory=FrozenMap({name: FromFile(name, value) for name, value in said["memory"].items()}),
            has_valid=bool(said["has_valid"]),
            batches_over=bool(said["batches_over"]),
            resume_at=resume_at,
            elapsed=decode(said["elapsed"]),
            notes=decode(said["notes"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the control state is damaged: {type(error).__name__}: {error}") from error
