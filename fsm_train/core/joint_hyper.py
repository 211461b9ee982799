"""The numbers of several optimizers that step together, by name.

A number of one of them is called `muon.lr`. Where all of them have it, it is also there as `lr`: a tuple with one value
per parameter group, over the groups of all optimizers in their order. To set the one sets the other.

Rule of this file: it knows names and values, and no optimizer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Set

from .state import Hyper
from .values import EMPTY


def shared_name(name: str) -> str:
    """The name that a number of one optimizer has where all have it; "" for one that belongs to no optimizer by name.

    >>> shared_name("muon.lr"), shared_name("lr")
    ('lr', '')
    """
    *owners, own = name.split(".")
    return ".".join([*owners[:-1], own]) if owners else ""


@functools.lru_cache
def _parts(names: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """By the name of each number that all optimizers have, its names in each of them."""
    parts: dict[str, tuple[str, ...]] = {}
    for name in names:
        if (shared := shared_name(name)) in names:
            parts[shared] = (*parts.get(shared, ()), name)
    return parts or EMPTY


def without_shared(hyper: Mapping[str, Hyper]) -> Mapping[str, Hyper]:
    """The numbers, each once: without those that are there by the name of each optimizer too."""
    parts = _parts(tuple(hyper))
    return {name: value for name, value in hyper.items() if name not in parts} if parts else hyper


def common_names(one: Set[str], other: Set[str]) -> list[str]:
    """The numbers that both set, under whichever name.

    >>> common_names({"lr", "muon.momentum"}, {"muon.lr", "adamw.beta1"})
    ['muon.lr']
    """
    both = one & other
    return sorted(both | set(_within(one, other)) | set(_within(other, one)))


def _within(names: Set[str], others: Set[str]) -> Iterator[str]:
    return (name for name in names if shared_name(name) in others)


def split(hyper: Mapping[str, Hyper], changes: Mapping[str, Hyper]) -> Mapping[str, Hyper]:
    """The changes, each value in the form that it has in `hyper`, and that of a shared number as those of its parts.

    >>> now = {"lr": (0.1, 0.2, 0.3), "muon.lr": 0.1, "adamw.lr": (0.2, 0.3)}
    >>> split(now, {"lr": (1.0, 2.0, 3.0)}), split(now, {"lr": 0.5}), split(now, {"muon.lr": 0.0})
    ({'muon.lr': 1.0, 'adamw.lr': (2.0, 3.0)}, {'muon.lr': 0.5, 'adamw.lr': (0.5, 0.5)}, {'muon.lr': 0.0})

    Raises:
        ValueError: a number is to be two things, by the name that all share and by its own.
    """
    parts = _parts(tuple(hyper))
    if not parts:
        return {name: like(hyper[name], value) for name, value in changes.items()}
    wanted: dict[str, Hyper] = {}
    for name, value in changes.items():
        for part, own in _of_each(hyper, name, like(hyper[name], value), parts.get(name)):
            if wanted.setdefault(part, own) != own:
                raise ValueError(f"it sets {part!r} to {wanted[part]!r}, and to {own!r} as a part of {name!r}")
    return wanted


def _of_each(
    hyper: Mapping[str, Hyper], name: str, value: Hyper, parts: tuple[str, ...] | None
) -> Iterator[tuple[str, Hyper]]:
    if parts is None:
        yield name, value
        return
    values = value if isinstance(value, tuple) else (value,)
    for part in parts:
        now = hyper[part]
        count = len(now) if isinstance(now, tuple) else 1
        yield part, like(now, values[:count])
        values = values[count:]


def joined(hyper: Mapping[str, Hyper], changes: Mapping[str, Hyper]) -> Mapping[str, Hyper]:
    """The changes, which `split` gave, with what they make of the numbers that all optimizers share.

    >>> now = {"lr": (0.1, 0.2, 0.3), "muon.lr": 0.1, "adamw.lr": (0.2, 0.3)}
    >>> joined(now, {"muon.lr": 0.0})
    {'muon.lr': 0.0, 'lr': (0.0, 0.2, 0.3)}
    """
    parts = _parts(tuple(hyper))
    if not parts:
        return changes
    after = {**hyper, **changes}
    shared = dict.fromkeys(name for name in map(shared_name, changes) if name in parts)
    return {**changes, **{name: like(hyper[name], concatenated(after[p] for p in parts[name])) for name in shared}}


def concatenated(values: Iterator[Hyper]) -> tuple[float, ...]:
    """One value per parameter group, of all of them."""
    return tuple(number for value in values for number in (value if isinstance(value, tuple) else (value,)))


def like(now: Hyper, value: Hyper) -> Hyper:
    """The value in the form in which the state holds it: one number, or one per group."""
    if isinstance(now, tuple):
        return value if isinstance(value, tuple) else (value,) * len(now)
    return value[0] if isinstance(value, tuple) else value
