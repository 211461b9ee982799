"""The weights of a checkpoint in a file of their own, for programs that know nothing of this package.

Rule of this file: the weights are those that `load_weights` loads, to the last bit. No model is needed for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.manifest import TEMPORARY
from ..core.errors import CheckpointError, WorkloadError
from .weights import choose, of_the_model
from .weights_of_player import has_average, is_averaged, parts_of_player


def write_weights(
    where: str | PathLike[str], file: str | PathLike[str], which: str = "best", player: str | None = None
) -> Mapping[str, Any]:
    """Write the state_dict of the model in a checkpoint: the weights that `load_weights` would load.

    >>> from fsm_train import Supervised, run, start
    >>> from fsm_train.callbacks import checkpoint
    >>> model = torch.nn.Linear(3, 1)
    >>> batches = [(torch.zeros(4, 3), torch.ones(4, 1))]
    >>> work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss(), batches, batches)
    >>> final = run(start(work, epochs=3), [checkpoint("kept", monitor="valid_loss", keep=1)])
    >>> write_weights("kept", "weights.pt")["name"]
    'epoch-00003'
    >>> sorted(torch.load("weights.pt", weights_only=True))
    ['bias', 'weight']

    Args:
        where: a folder of checkpoints, or one checkpoint.
        file: what to write, .safetensors or for torch.load. One that is there is replaced when all is written.
        which: as for `load_weights`.
        player: of a training in turns, whose model it is; None for all models in one file, as "G.0.weight".

    Returns:
        What `load_weights` returns.

    Raises:
        NoCheckpointError, CheckpointError: as `load_weights`; or an average does not fit the model beside it.
        WorkloadError: a value of the state_dict is none that the file can hold.
        OSError: the file cannot be written.
    """
    path = Path(file)
    values, measured = choose(where, which, partial(state_dict_of, player=player))
    unfinished = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        if path.suffix == ".safetensors":
            _write_safetensors(values, unfinished)
        else:
            _write_pt(values, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return measured


def state_dict_of(path: Path, parts: Mapping[str, Any], weights: str, player: str | None = None) -> dict[str, Any]:
    """The state_dict of the model in a checkpoint, with the average of this name in it, or as it is for "model".

    Raises:
        CheckpointError: the average does not fit the model beside it.
        WorkloadError: there is no such player.
    """
    if player is not None:
        parts = {**parts_of_player(parts, player)}
        weights = weights if weights == "model" or has_average(parts, weights) else "model"
        del parts["players"]
    saved = parts["modules"]["model"]
    values: dict[str, Any] = dict(saved["values"])
    if weights == "model":
        return values
    average = of_the_model(parts["averages"][weights]["average"])
    if "parameters" not in average:
        raise CheckpointError(
            f"{path} is of an earlier version, whose averages are only read with the model: "
            "load_weights(folder, model), and torch.save(model.state_dict(), file)"
        )
    if not average["n_averaged"]:
        return values
    means = {name.removeprefix("model."): value for name, value in average["parameters"].items()}
    buffers = {name.removeprefix("model."): value for name, value in average["buffers"].items()}
    # A parameter that two layers share is averaged under the first of its names.
    shared = {_memory(values[name]): mean.to(values[name].dtype) for name, mean in means.items() if name in values}
    new = dict(values)
    for name, value in values.items():
        if name in buffers:
            new[name] = buffers[name]
        elif not is_averaged(name, parts, average):
            continue
        elif isinstance(value, torch.Tensor) and name not in (saved["buffers"] or ()):
            mean = shared.get(_memory(value))
            if mean is None:
                raise CheckpointError(
                    f"the average {weights!r} in {path} has no {name}, which the model has: load it with "
                    "the model, load_weights(folder, model)"
                )
            new[name] = mean
    return new


def _memory(value: torch.Tensor) -> tuple[Any, ...]:
    """What two names of one parameter have in common, and no others."""
    return value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride()


def _write_pt(values: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as stream:
        try:
            torch.save(values, stream)
        except RuntimeError as error:  # torch ends its archive all the same, which hides what the disk said
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _write_safetensors(values: Mapping[str, Any], path: Path) -> None:
    from safetensors import SafetensorError  # an extra
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            raise WorkloadError(
                f"{name} is of the type {type(value).__name__}, and a .safetensors file holds tensors alone: write a "
                ".pt file"
            )
        # The format has no shared tensors: each of their names has a copy.
        own = value.untyped_storage().data_ptr() not in memory
        memory.add(value.untyped_storage().data_ptr())
        tensors[name] = value.detach().contiguous() if own else value.detach().clone().contiguous()
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # which is no OSError
        raise OSError(f"the file cannot be written: {error}") from error
