"""What the batches of a pass gave, as one: for `predict`, and for metrics that are measured over all.

Rule of this file: what is joined keeps all values and their types. Whatever cannot be joined is a list with an item for
each batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from ..core.errors import WorkloadError


def join(parts: Sequence[Any], *, as_batch_of: str | None = None) -> Any:
    """The outputs of several batches as one, part by part.

    >>> join([torch.zeros(2, 3), torch.zeros(1, 3)]).shape
    torch.Size([3, 3])
    >>> join([(torch.tensor([1]), None), (torch.tensor([2, 3]), None)])
    (tensor([1, 2, 3]), None)
    >>> join([{"loss": torch.tensor(0.5)}, {"loss": torch.tensor(0.25)}])
    {'loss': [tensor(0.5000), tensor(0.2500)]}

    As if they were one batch:

    >>> join([{"loss": torch.tensor(0.5)}, {"loss": torch.tensor(0.25)}], as_batch_of="outputs")
    {'loss': tensor([0.5000, 0.2500])}
    >>> join([(torch.zeros(2), ["a", "b"]), (torch.ones(1), ["c"])], as_batch_of="targets")
    (tensor([0., 0., 1.]), ['a', 'b', 'c'])

    Args:
        parts: at least one.
        as_batch_of: what they are, such as "outputs", where a function is given them as if they were one batch. Then
            scalars are stacked; lists, and tuples of mappings or texts, have an item for each sample and become one
            list; and a container is of the class of the last one.

    Raises:
        WorkloadError: they are tuples of several lengths, where they are to be as one batch.
    """
    last = parts[-1]
    if all(part is None for part in parts):
        return None
    if all(isinstance(part, torch.Tensor) for part in parts):
        return _join_tensors(parts, stacks=as_batch_of is not None)
    if all(isinstance(part, Mapping) and part.keys() == last.keys() for part in parts):
        joined = {key: join([part[key] for part in parts], as_batch_of=as_batch_of) for key in last}
        return joined if as_batch_of is None else _like(last, joined)
    if as_batch_of is not None and all(isinstance(part, (tuple, list)) for part in parts):
        if isinstance(last, list) or all(isinstance(item, (Mapping, str)) for part in parts for item in part):
            return [item for part in parts for item in part]
        _check_lengths(parts, as_batch_of)
    if all(isinstance(part, tuple) and len(part) == len(last) for part in parts):
        items = [join(each, as_batch_of=as_batch_of) for each in zip(*parts, strict=True)]
        return type(last)(*items) if hasattr(last, "_fields") else tuple(items)
    return list(parts)


def _join_tensors(tensors: Sequence[torch.Tensor], *, stacks: bool) -> Any:
    first = tensors[0]
    if any(each.is_nested or each.layout is not torch.strided or each.dtype != first.dtype for each in tensors):
        return list(tensors)
    if stacks and all(each.dim() == 0 for each in tensors):
        return torch.stack(list(tensors))
    if any(each.dim() == 0 or each.shape[1:] != first.shape[1:] for each in tensors):
        return list(tensors)
    return torch.cat(list(tensors))


def _like(last: Mapping[Any, Any], joined: dict[Any, Any]) -> Mapping[Any, Any]:
    """What was joined, in a mapping of the class of the last one, such as an output of transformers."""
    if type(last) is dict or not isinstance(last, MutableMapping):
        return joined
    same = copy.copy(last)
    for key, value in joined.items():
        same[key] = value
    return same


def _check_lengths(parts: Sequence[Sequence[Any]], what: str) -> None:
    lengths = sorted({len(part) for part in parts})
    if len(lengths) > 1:
        raise WorkloadError(
            f"the {what} of the batches are tuples of {lengths[0]} and of {lengths[-1]}, which cannot be joined part "
            "by part: a tuple has the same parts in each batch; give what there is for each sample as a list"
        )
