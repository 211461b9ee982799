"""What the data is, as far as one can tell without reading it: to notice, on a resume, that it is other data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from .augmentation import is_reproducible
from .batches import number_of_batches
from .generators import is_generator
from .layers import Layer, attributes_of, layers_of

Fingerprint = Mapping[str, Mapping[str, Any]]
"""By path, such as "train.sampler", the class, the length and the settings of a layer."""

_NAMES = {"train": "the training data", "valid": "the validation data"}
_SHUFFLE = {"SequentialSampler": False, "RandomSampler": True}
_LONGEST = 100  # characters of a text that is a setting


def fingerprint(**loaders: object) -> dict[str, dict[str, Any]]:
    """What these loaders read, and how: classes, lengths, and settings that are numbers or short texts."""
    return {layer.path: dict(_about(layer.part)) for layer in layers_of(**loaders) if _says_something(layer)}


def _says_something(layer: Layer) -> bool:
    part = layer.part
    if isinstance(part, (tuple, list, dict)):
        return "." not in layer.path
    if isinstance(part, BatchSampler) and type(part) is BatchSampler:
        return False  # its settings are the loader's
    return not isinstance(part, (FunctionType, MethodType, partial)) and not is_generator(part)


def _about(part: Any) -> Iterator[tuple[str, Any]]:
    yield "class", type(part).__name__
    yield "length", number_of_batches(part)
    if isinstance(part, DataLoader):
        yield from (("batch_size", part.batch_size), ("drop_last", part.drop_last))
        if not is_reproducible(part):
            yield "workers", part.num_workers > 0
    for name, value in attributes_of(part).items():
        number = type(value) in (bool, int, float)
        text = type(value) is str and len(value) < _LONGEST and os.sep not in value
        if (number or text) and not name.startswith("_") and name not in ("epoch", "training"):
            yield name, value


def differences(here: Fingerprint, saved: Fingerprint, changed: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each thing that is not as it was saved, the outer ones first.

    Args:
        here: of the present data.
        saved: of the data when it was saved.
        changed: by path and name, what the training itself changes, which is no setting.
    """
    others: list[str] = []
    for path in here:
        if path not in saved or any(path.startswith(f"{other}.") for other in others):
            continue
        ours, theirs = here[path], saved[path]
        if ours["class"] != theirs["class"]:
            others.append(path)
            yield _another_class(path, ours["class"], theirs["class"])
            continue
        for name, value in ours.items():
            if name in theirs and value != theirs[name] and name not in changed.get(path, {}):
                sentence = _SENTENCES.get(name, f"{name} is {{}}, and was {{}}")
                yield f"{_called(path)}: {sentence.format(value, theirs[name])}"


_SENTENCES = {
    "length": "it has {} items, and had {}",
    "workers": "workers read it: {}, and was {}, which changes random numbers that are drawn while samples are read",
}


def _called(path: str) -> str:
    root, _, rest = path.partition(".")
    return f"{_NAMES.get(root, root)} ({path})" if rest else _NAMES.get(root, root)


def _another_class(path: str, ours: str, theirs: str) -> str:
    if ours in _SHUFFLE and theirs in _SHUFFLE:
        root = path.partition(".")[0]
        return f"{_NAMES.get(root, root)}: shuffle is {_SHUFFLE[ours]}, and was {_SHUFFLE[theirs]}"
    return f"{_called(path)}: it is a {ours}, and was a {theirs}"
