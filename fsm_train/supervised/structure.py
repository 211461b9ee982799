"""Values that were copied by name, when the model has other names by now.

Rule of this file: values follow a change exactly, or the difference is a sentence. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch

from ..wording import some_of


def follow(values: Mapping[str, Any], present: Mapping[str, Any], parameters: Set[str]) -> tuple[dict[str, Any], str]:
    """The values under the names that the model has now, and what cannot follow; empty if all can.

    `torch.nn.utils.prune` makes of a weight the product of `weight_orig` and `weight_mask`, and `prune.remove`
    makes one weight of them again: the values follow both, with a mask of ones, and compute the same.

    >>> values = {"weight": torch.tensor([3.0])}
    >>> pruned = {"weight_orig": torch.tensor([1.0]), "weight_mask": torch.tensor([0.0])}
    >>> follow(values, pruned, {"weight_orig"})
    ({'weight_orig': tensor([3.]), 'weight_mask': tensor([1.])}, '')
    >>> follow(values, {"bias": torch.tensor([1.0])}, {"bias"})[1]
    'it has bias now, and had weight'

    Args:
        values: as they were copied, by name.
        present: what the model has now, by name.
        parameters: those of the names in `present` whose shape has to be the same.
    """
    followed = dict(values)
    for name in sorted(present.keys() - values.keys()):
        pruned = name.removesuffix("_orig")
        if pruned != name and pruned in followed and f"{pruned}_mask" in present:
            followed[name] = followed.pop(pruned)
            followed[f"{pruned}_mask"] = torch.ones_like(followed[name])
        elif f"{name}_orig" in followed and f"{name}_mask" in followed:
            followed[name] = followed.pop(f"{name}_orig") * followed.pop(f"{name}_mask")
    return followed, _difference(followed, present, parameters)


def _difference(values: Mapping[str, Any], present: Mapping[str, Any], parameters: Set[str]) -> str:
    new, gone = sorted(present.keys() - values.keys()), sorted(values.keys() - present.keys())
    clauses = [f"it has {some_of(new)} now"] if new else []
    clauses += [f"had {some_of(gone)}" if new else f"it had {some_of(gone)}"] if gone else []
    for name in sorted(values.keys() & parameters):
        if not clauses and values[name].shape != present[name].shape:
            clauses.append(f"{name} has the shape {tuple(present[name].shape)}, and had {tuple(values[name].shape)}")
    return ", and ".join(clauses)
