"""The names in the parts of a checkpoint, as they are without torch.compile.

Rule of this file: parts that were saved here come through it as they are. Earlier versions saved a compiled model under
the names that torch gives its parts, with `_orig_mod` in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoints.writing import Parts
from ..data.compiled import plain_name, without_compile

_DEPTHS = {"modules": 3, "averages": 5, "weights": 5}
"""How many mappings and lists are around a name, by part."""


def plain_weights(parts: Parts) -> Parts:
    """The parts with plain names in modules and averages.

    >>> plain_weights({"modules": {"model": {"values": {"_orig_mod.weight": 1.0}}}, "averages": {}})
    {'modules': {'model': {'values': {'weight': 1.0}}}, 'averages': {}}

    Args:
        parts: of which `check_shape_of_weights` has approved.
    """
    return {**parts, **{part: without_compile(parts[part], _DEPTHS[part]) for part in ("modules", "averages")}}


def plain_parts(parts: Parts) -> Parts:
    """The parts with plain names in all of them.

    Args:
        parts: of which `check_shape` has approved.
    """
    beginning = parts["beginning"]
    return {
        **plain_weights(parts),
        "weights": without_compile(parts["weights"], _DEPTHS["weights"]),
        "optimizer_of": _plain_groups(parts["optimizer_of"]),
        **({"players": _plain_players(parts["players"])} if "players" in parts else {}),
        "generators": _plain_paths(parts["generators"]),
        "beginning": beginning and {**beginning, "generators": _plain_paths(beginning["generators"])},
    }


def _plain_groups(optimizer_of: Any) -> Any:
    if isinstance(optimizer_of, Mapping):  # several, which earlier versions did not have
        return optimizer_of
    kind, groups = optimizer_of
    return [kind, [[plain_name(name) for name in names] for names in groups]]


def _plain_players(players: Mapping[str, Any]) -> dict[str, Any]:
    others = players["others"].items()
    return {**players, "others": {n: {**own, "optimizer_of": _plain_groups(own["optimizer_of"])} for n, own in others}}


def _plain_paths(generators: Mapping[str, Any]) -> dict[str, Any]:
    own = generators["own"]
    return {**generators, "own": without_compile(own, 1) if isinstance(own, Mapping) else own}
