"""The weights of one player in a checkpoint of a training in turns, as those of a model of its own.

Rule of this file: parts in, parts out. Nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..core.errors import WorkloadError
from ..data.compiled import state_dict_of


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
    names = names_in(parts)
    there_are = ", ".join(map(repr, names))
    if player is None:
        ours = _shapes(state_dict_of(model))
        if ours == _shapes(parts["modules"]["model"]["values"]):
            return parts  # all models, as in work.model
        fitting = [name for name in names if ours == _shapes(_of(name, parts["modules"]["model"]["values"]))]
        if len(fitting) != 1:
            raise WorkloadError(f"whose weights? Say it, load_weights(…, player='…'): there are {there_are}")
        (player,) = fitting
    return parts_of_player(parts, player)


def parts_of_player(parts: Mapping[str, Any], player: str) -> Mapping[str, Any]:
    """The parts with the weights of this player alone.

    Raises:
        WorkloadError: there is no such player.
    """
    names = names_in(parts)
    if player not in names:
        there_are = ", ".join(map(repr, names)) or "none"
        raise WorkloadError(f"there is no player {player!r} in this checkpoint: there are {there_are}")
    saved = parts["modules"]["model"]
    own = {"model": {part: values and _of(player, values) for part, values in saved.items()}}
    averages = {name: _average_of(player, average) for name, average in parts["averages"].items()}
    return {**parts, "modules": own, "averages": averages}


def names_in(parts: Mapping[str, Any]) -> list[str]:
    """The names of the players in a checkpoint; none of a training without turns."""
    players = parts.get("players")
    return [] if players is None else sorted({players["playing"], *players["others"]})


def is_averaged(name: str, parts: Mapping[str, Any], average: Mapping[str, Any]) -> bool:
    """Whether a value of all models is one of a player whose weights are averaged, or there are no players."""
    begin = f"model.{name.partition('.')[0]}."
    return "players" not in parts or any(other.startswith(begin) for other in average["parameters"])


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
