"""The weights of a checkpoint for a bare module: those that its score was measured with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from ..checkpoints.api import read
from ..checkpoints.choice import candidates
from ..checkpoints.manifest import Checkpoint
from ..checkpoints.shard_reading import put_shards_into
from ..checkpoints.shards import Place
from ..checkpoints.writing import Parts
from ..core.errors import CheckpointError, WorkloadError
from ..core.phase import Phase
from ..core.runs import epochs_trained
from ..core.state import State
from ..core.values import FrozenMap
from ..data.compiled import named_parameters, state_dict_of
from ..wording import some_of
from .averages import Average
from .modules import check_dtypes, check_tensors, copy_of_module, fits_module, put_back_module
from .player import modules_of_player, player_in
from .saved_names import plain_weights
from .saved_shape import check_shape_of_weights
from .sharded_model import refuse_whole_checkpoint
from .weights_of_player import has_average, parts_for

T = TypeVar("T")

_logger = logging.getLogger("fsm_train")


def load_weights(
    where: str | PathLike[str], model: nn.Module, *, which: str = "best", player: str | None = None
) -> Mapping[str, Any]:
    """Load the weights of a checkpoint into a model, without an optimizer: those that were measured.

    Where validations were measured with an average of the weights, as beside `ema`, that average is loaded, so that
    the model has the score that was recorded. `restore` resumes the training instead. The modes of the model do not
    change. A loss that is a module has weights of its own, which are not loaded: a score that was measured with it is
    that of the model beside this loss. `left_out` names it, and a warning is logged.

    >>> import torch
    >>> from fsm_train import Supervised, run, start
    >>> from fsm_train.callbacks import checkpoint, ema
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = [(torch.zeros(4, 3), torch.ones(4, 1))]
    >>> work = Supervised(model, optimizer, torch.nn.MSELoss(), batches, batches)
    >>> final = run(start(work, epochs=3), [ema(0.9), checkpoint("weights", monitor="valid_loss", keep=1)])
    >>> loaded = load_weights("weights", torch.nn.Linear(3, 1))
    >>> loaded["name"], loaded["epoch"], loaded["step"], loaded["weights"]
    ('epoch-00003', 3, 3, 'ema')
    >>> loaded["metrics"]["valid_loss"] == final.metrics["valid_loss"]
    True

    Args:
        where: a folder of checkpoints, or one checkpoint.
        model: of the same structure as the one that was trained. Its parameters are changed in place.
        which: "best" by the metric that `checkpoint(monitor=…)` was given, of equal ones the earliest; "last"; or the
            name of a checkpoint. A warning names each damaged one that is passed over.
        player: of a training in turns, whose model it is; None for the only one that it fits.

    Returns:
        What was loaded: `name`, `epoch`, `step`, `metrics`, and `weights`: "model", or the name of the average. And
        `left_out`: the names of the modules of the checkpoint that were not loaded, such as "loss".

    Raises:
        NoCheckpointError: there is no checkpoint, or none of that name.
        CheckpointError: the named one is damaged or there is no good one; for "best", no checkpoint has a score.
        TypeError: `which` is no text.
        WorkloadError: the model has other parameters or buffers, of other shapes or dtypes. It is unchanged then.
    """
    if not isinstance(model, nn.Module):
        raise WorkloadError(
            f"load_weights loads into a torch.nn.Module, and not into a {type(model).__name__}: give work.model for a "
            "workload"
        )
    refuse_whole_checkpoint(model, "load_weights")
    if not isinstance(which, str):
        raise TypeError(f"which={which!r}: write 'best', 'last' or the name of a checkpoint")
    _, measured = choose(where, which, partial(_give, model, player))
    return measured


def choose(
    where: str | PathLike[str], which: str, take: Callable[[Path, Parts, str], T]
) -> tuple[T, Mapping[str, Any]]:
    """Take the weights of the checkpoint that `which` means, verified: those that were measured.

    Args:
        where: a folder of checkpoints, or one checkpoint.
        which: as for `load_weights`.
        take: of the path, the parts, and which weights of them these are: "model", or the name of an average. If it
            raises a CheckpointError, the next checkpoint is taken.

    Returns:
        What `take` returned, and what `load_weights` returns.

    Raises:
        NoCheckpointError: there is no checkpoint, or none of that name.
        CheckpointError: the named one is damaged or there is no good one; for "best", no checkpoint has a score.
    """
    found, problems = candidates(Path(where), which)
    for checkpoint in found:
        try:
            state, parts = read(checkpoint)
            weights = _weights_of(checkpoint, parts)
            put_shards_into(checkpoint, parts, only=partial(_has_weights, weights))
            parts = plain_weights(parts)
            taken = take(checkpoint.path, parts, weights)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}: loading {checkpoint.path}", RuntimeWarning, stacklevel=3)
        return taken, _measured(checkpoint.path, state, parts, weights)
    raise CheckpointError("; ".join(problems))


def _weights_of(checkpoint: Checkpoint, parts: Parts) -> str:
    """Which of its weights have its metrics: "model", or the name of an average.

    Raises:
        CheckpointError: it does not hold them.
    """
    score, path = checkpoint.save_point.score, checkpoint.path
    try:
        check_shape_of_weights(parts)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    weights: str = score.weights if score is not None else parts.get("measured_with", "model")
    if weights != "model" and weights not in parts["averages"]:
        raise CheckpointError(f"{path} has a score of the average {weights!r}, and does not hold it")
    return weights


def _has_weights(weights: str, place: Place) -> bool:
    """Whether these weights need what is at this place, and not an optimizer's moments or another average."""
    return place[:2] == ("modules", "model") or place[:3] == ("averages", weights, "average")


def _measured(path: Path, state: State, parts: Parts, weights: str) -> Mapping[str, Any]:
    """What `load_weights` returns."""
    if "measured_with" not in parts and parts["averages"]:
        _logger.warning(
            "%s is of an earlier version, which did not record whether its metrics are those of the model or of an "
            "average: the weights of the model are loaded, and not %s",
            path,
            ", ".join(sorted(parts["averages"])),
        )
    left_out = tuple(name for name, module in parts["modules"].items() if name != "model" and module["values"])
    if left_out:
        _logger.warning("%s holds weights of the loss too: load_weights loads those of the model alone", path)
    # After a validation the metrics of the training are still those of the epoch before.
    within = state.resume_at is Phase.VALID_END
    metrics = {name: value for name, value in state.metrics.items() if not within or name.startswith("valid_")}
    measured = {"epoch": epochs_trained(state), "step": state.step, "metrics": FrozenMap(metrics)}
    return FrozenMap({"name": path.name, **measured, "weights": weights, "left_out": left_out})


def _give(model: nn.Module, player: str | None, path: Path, parts: Mapping[str, Any], weights: str) -> None:
    """Load the weights, or the average of this name, into the model: all or none.

    Raises:
        CheckpointError: the checkpoint does not hold them.
        WorkloadError: the model is another one.
    """
    parts = parts_for(model, parts, player)
    saved = parts["modules"]["model"]
    if weights != "model" and "players" in parts and not has_average(parts, weights):
        weights = "model"
    fits = weights == "model" and saved["buffers"] is not None and fits_module(model, saved)
    before = None if fits else copy_of_module(model)  # which takes memory
    try:
        _load(model, saved, path)
        if weights != "model":
            averaged = of_the_model(parts["averages"][weights]["average"])
            modules = {"model": model}
            player = player_in(averaged.get("parameters", ()), modules)
            average = Average(weights, modules_of_player(modules, player), None)
            average.load({"average": averaged, "own": None})
            average.use(True)  # and it stays so
    except BaseException as error:
        if before is not None:
            put_back_module(model, before)
        if isinstance(error, WorkloadError) or not isinstance(error, Exception):
            raise
        raise CheckpointError(f"{path} does not hold the weights of a training: {error}") from error


def _load(model: nn.Module, saved: Mapping[str, Any], path: Path) -> None:
    """Load values and buffers, after a look at all of them, so that a model that does not fit is named."""
    ours, theirs = state_dict_of(model), saved["values"]
    new, gone = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if new or gone:
        clauses = [f"the model has {some_of(new)}"] * bool(new) + [f"the checkpoint has {some_of(gone)}"] * bool(gone)
        raise WorkloadError(
            f"{path} holds another model, and names are not matched by guess: only {', and only '.join(clauses)}. "
            "Give the model in the wrapper in which it was trained, such as DataParallel, or without one"
        )
    check_tensors(model, saved)
    parameters = dict(named_parameters(model, remove_duplicate=False))
    for name, value in ours.items():
        if name in parameters and not is_lazy(value) and value.shape != theirs[name].shape:
            raise WorkloadError(
                f"{path} holds another model: {name} has the shape {tuple(theirs[name].shape)} there, and "
                f"{tuple(value.shape)} in this model"
            )
    check_dtypes(model, theirs)
    put_back_module(model, saved)


def of_the_model(average: Mapping[str, Any]) -> dict[str, Any]:
    """The average without that of the loss."""
    return {
        part: {name: value for name, value in values.items() if not name.startswith("loss")}
        if part in ("parameters", "buffers")
        else values
        for part, values in average.items()
    }
