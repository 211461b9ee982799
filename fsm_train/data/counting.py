"""What a batch counts: its weight in every mean, in `state.samples` and in an accumulation window.

Rule of this file: nothing is guessed. The user's `samples` says it, or all tensors of the batch agree on their first
dimension; otherwise the batch is refused, with the shapes and the setting to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from ..core.checks import as_count
from ..core.errors import WorkloadError
from .batches import fields_of

Samples = Callable[[Any, Any], "float | torch.Tensor"]

_Found = tuple[str, int | None]
"""A part of a batch, described, and its number of samples; None for an object that cannot be looked into."""

PACKED = -1  # in place of a size: a sequence for each sample, and no first dimension

_ADVICE = "pass Supervised(…, samples=lambda inputs, target: …) to say how many samples a batch has"


def count(inputs: Any, target: Any, samples: Samples | None = None, *, by_position: bool = True) -> float:
    """What the batch counts: what `samples` answers, or the first dimension that all its tensors have in common.

    >>> count(torch.zeros(8, 3), torch.zeros(8))
    8
    >>> count(torch.zeros(8, 3), torch.zeros(8), lambda inputs, target: 2.5)
    2.5

    Args:
        inputs, target: the batch.
        samples: of (inputs, target), what the batch counts; None for the common first dimension.
        by_position: whether a list of inputs holds the arguments of the model, and not one sample an element.

    Raises:
        WorkloadError: the answer is no number from 0, or the parts of the batch do not agree.
    """
    if samples is not None:
        return _answer(samples(inputs, target))
    size = _size_of_tensors(inputs, by_position)
    if size is not None and size == _size_of_tensors(target, by_position):
        return size
    return _common(inputs, target, by_position)


def _size_of_tensors(value: Any, by_position: bool) -> int | None:
    """The first dimension of a tensor, or of a list or mapping of tensors; None if it takes a closer look."""
    try:
        kind = type(value)
        if kind is torch.Tensor:
            return int(value.size(0))
        if kind is dict:
            parts = value.values()
        elif by_position and (kind is tuple or kind is list):
            parts = value
        else:
            return None
        sizes = {part.size(0) if type(part) is torch.Tensor else None for part in parts}
    except IndexError:  # a tensor without a dimension
        return None
    return sizes.pop() if len(sizes) == 1 else None


def _answer(answer: object) -> float:
    if hasattr(answer, "item") and getattr(answer, "ndim", None) == 0:  # a scalar of torch or NumPy
        answer = answer.item()
    try:
        return as_count(answer, "samples")
    except ValueError as error:
        raise WorkloadError(str(error)) from None


def _common(inputs: Any, target: Any, by_position: bool) -> int:
    """The number of samples that all parts of the batch agree on."""
    of_inputs, of_target = [*_parts(inputs, "inputs")], [*_parts(target, "target")]
    found = [*of_inputs, *of_target]
    if isinstance(inputs, (tuple, list)) and not inputs and not found:
        return 0
    if not found:
        raise WorkloadError(
            f"there is no tensor with a first dimension in a batch, whose inputs are {_what(inputs)}: {_ADVICE}; "
            "if the loader gives single samples, pass DataLoader(data, batch_size=32)"
        )
    for name, value, parts in (("inputs", inputs, of_inputs), ("target", target, of_target)):
        if not parts and not _is_nothing(value):
            raise WorkloadError(
                f"{name} seems to be of a single sample and not of a batch: it is {_what(value)}. Is the loader "
                f"batched? If it gives single samples, pass DataLoader(data, batch_size=32); otherwise {_ADVICE}"
            )
    sizes = {size for _, size in found if size is not None}
    hidden = any(parts and all(size is None for _, size in parts) for parts in (of_inputs, of_target))
    if hidden or len(sizes) > 1 or PACKED in sizes or (not by_position and _may_be_samples(inputs, target, sizes)):
        described = ", ".join(dict.fromkeys(description for description, _ in found))
        raise WorkloadError(
            f"how many samples a batch has cannot be known from its parts ({described:.400}): {_ADVICE}"
        )
    (size,) = sizes
    return size


def _parts(value: Any, name: str) -> Iterator[_Found]:
    """What can say how many samples there are, in nested tuples, lists, mappings and records."""
    if isinstance(value, PackedSequence):
        yield f"{name}: a PackedSequence", PACKED
    elif isinstance(value, (str, bytes)) or _is_scalar(value) or value is None:
        return
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _parts(part, f"{name}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        if value and all(map(_is_one_sample, value)):
            yield f"{name}: a {type(value).__name__} of {len(value)}", len(value)
        elif value and all(fields_of(part) is not None for part in value):  # samples, or arguments of the model
            yield f"{name}: a {type(value).__name__} of {len(value)} {type(value[0]).__name__}", None
        else:
            for number, part in enumerate(value):
                yield from _parts(part, f"{name}[{number}]")
    elif (shape := _shape(value)) is not None:
        yield f"{name} {shape}", shape[0]
    elif fields := fields_of(value):
        for field, part in fields.items():
            yield from _parts(part, f"{name}.{field}")
    else:
        yield f"{name}: a {type(value).__name__}", None


def _is_one_sample(value: Any) -> bool:
    """Whether an element of a list is what a single sample has: a number, a text, a mapping."""
    return isinstance(value, (str, bytes, Mapping)) or _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, complex)) or _shape(value) == ()


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor or an array; None of anything else."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return (value.size(0), -1)
    shape = getattr(value, "shape", None)
    return tuple(shape) if isinstance(shape, tuple) else None


def _may_be_samples(inputs: Any, target: Any, sizes: set[int]) -> bool:
    """Whether the inputs are a list whose elements may be samples as well as arguments, and the target says no more."""
    if not isinstance(inputs, (tuple, list)) or len(inputs) in sizes:
        return False
    return _is_nothing(target) or (isinstance(target, (tuple, list)) and len(inputs) == len(target))


def _is_nothing(value: Any) -> bool:
    """Whether it is None, or holds nothing else."""
    if isinstance(value, Mapping):
        return all(map(_is_nothing, value.values()))
    return value is None or (isinstance(value, (tuple, list)) and all(map(_is_nothing, value)))


def _what(value: Any) -> str:
    shape = _shape(value)
    return f"a {type(value).__name__}" + (f" of shape {shape}" if shape is not None else f" ({value!r:.40})")
