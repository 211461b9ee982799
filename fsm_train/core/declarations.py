"""The declarations of a callback that are sets of names or of types.

Rule of this file: what is no such set is refused with the set to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from .transition import Command

COMPARED: Mapping[str, tuple[str, ...]] = {
    "batch_size": ("fetched", "fetched.__class__"),  # 32 and 32.0 are equal, and a log tells them apart
    "batches_over": ("batches_over",),
    "epoch": ("epoch",),
    "pending": ("pending",),
}
"""What can be declared, and where a draft has it: numbers that have few values in a training."""

FREE = frozenset({"phase", "flags", "plan", "has_valid", "batches_per_epoch", "player"})
"""What can be declared too, or left out: it is the same wherever a decision is kept."""


def _names(given: object, argument: str, of: str, example: str) -> frozenset[str]:
    names = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}={given!r}: give a set of {of}, for example {{{example!r}}}")
    return frozenset(cast("tuple[str, ...]", names))


def as_needs(names: object) -> frozenset[str]:
    return _names(names, "needs", "names of facts", "loss")


def as_monitors(names: object) -> frozenset[str]:
    return _names(names, "monitors", "names of metrics", "valid_loss")


def as_folders(paths: object) -> frozenset[str]:
    return _names(paths, "writes_to", "paths of folders", "checkpoints")


def as_sets(keys: Iterable[str] | None) -> frozenset[str] | None:
    return None if keys is None else frozenset(keys)


def as_commands(types: Iterable[type[Command]] | None) -> frozenset[type[Command]] | None:
    return None if types is None else frozenset(types)


def as_reads(names: object) -> frozenset[str] | None:
    """The names of what a callback reads; None where it does not declare that.

    Raises:
        TypeError: they are no set of names.
        ValueError: decisions cannot be kept by one of them.
    """
    if names is None:
        return None
    given = names if isinstance(names, (set, frozenset, tuple, list)) else (None,)
    if not all(isinstance(name, str) for name in given):
        raise TypeError(f"reads={names!r}: give a set of names, for example {{'epoch'}}, or () for nothing")
    if others := sorted(set(given) - COMPARED.keys() - FREE):
        raise ValueError(
            f"reads={names!r}: an answer can be kept by {', '.join(COMPARED)}, and not by {', '.join(others)}. "
            "Leave reads out, and the callback is asked each time"
        )
    return frozenset(given)
