"""The weights of one player in a checkpoint of a training in turns, as those of a model of its own.

Rule of this file: parts in, parts out. Nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..core.errors import WorkloadError


def parts_for(model: nn.Module, parts: Mapping[str, Any], player: str | None) -> Mapping[str, Any]:
    """The parts with the weights for this model: those of a player, or as they are without turns.

    Without a name it is the player whose weights have the names and shapes of the model's, if it is the only one.

    Raises:
        WorkloadError: there is no such player, or it has to be said which.
    """
    if "players" not in parts:
        if player is not None:
            raise WorkloadError(f"player={player!r}: this checkpoint is of a training without players")
        return parts
    names = sorted({parts["players"]["playing"], *parts["players"]["others"]})
    there_are = ", ".join(map(repr, names))
    if player is None:
        ours = _shapes(model.state_dict())
        if ours == _shapes(parts["modules"]["model"]["values"]):
            return parts  # all models, as in work.model
        fitting = [name for name in names if ours == _shapes(_of(name, parts["modules"]["model"]["values"]))]
        if len(fitting) != 1:
            raise WorkloadError(f"whose weights? Say it, load_weights(…, player='…'): there are {there_are}")
        (player,) = fitting
    if player not in names:
        raise WorkloadError(f"there is no player {player!r} in this checkpoint: there are {there_are}")
    saved = parts["modules"]["model"]
    own = {"model": {part: values and _of(player, values) for part, values in saved.items()}}
    averages = {name: _average_of(player, average) for name, average in parts["averages"].items()}
    return {**parts, "modules": own, "averages": averages}


def has_average(parts: Mapping[str, Any], name: str) -> bool:
    """Whether the average of this name has weights of this model: one of another player's has none."""
    return bool(parts["averages"][name]["average"].get("parameters"))


def _of(player: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one player; the mode of the module itself has its name alone."""
    begin = f"{player}."
    own = {name.removeprefix(begin): value for name, value in values.items() if name.startswith(begin)}
    return {**({"": values[player]} if player in values else {}), **own}


def _average_of(player: str, average: Mapping[str, Any]) -> dict[str, Any]:
    parts = dict(average["average"])
    for kind in ("parameters", "buffers"):
        begin = f"model.{player}."
        values = parts.get(kind, {})
        parts[kind] = {f"model.{n.removeprefix(begin)}": v for n, v in values.items() if n.startswith(begin)}
    return {**average, "average": parts}


def _shapes(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in values.items()}
