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


def plain_parts(parts: Parts) -> Parts:
    """The parts with plain names.

    >>> plain_parts({"modules": {"model": {"values": {"_orig_mod.weight": 1.0}}}})
    {'modules': {'model': {'values': {'weight': 1.0}}}}

    Args:
        parts: of which `check_shape` or `check_shape_of_weights` has approved.
    """
    named = {part: without_compile(parts[part], depth) for part, depth in _DEPTHS.items() if part in parts}
    if "optimizer_of" in parts:
        kind, groups = parts["optimizer_of"]
        named["optimizer_of"] = [kind, [[plain_name(name) for name in names] for names in groups]]
    if "generators" in parts:
        named["generators"] = _plain_paths(parts["generators"])
    if parts.get("beginning") is not None:
        beginning = parts["beginning"]
        named["beginning"] = {**beginning, "generators": _plain_paths(beginning["generators"])}
    return {**parts, **named}


def _plain_paths(generators: Mapping[str, Any]) -> dict[str, Any]:
    own = generators["own"]
    return {**generators, "own": without_compile(own, 1) if isinstance(own, Mapping) else own}
