"""Numbers of one's own: what a loss or a model reads, and callbacks set, as they set what an optimizer has.

Rule of this file: a number has one owner. What an optimizer has is no number of one's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..core.arguments import kind_of
from ..core.checks import NO_TEXT, is_text
from ..core.errors import WorkloadError
from ..core.state import Hyper, check_hyper


def check_numbers(given: Mapping[str, Any] | None, of_optimizer: Iterable[str]) -> dict[str, float]:
    """The numbers by name, as floats.

    >>> check_numbers({"kl": 0}, ["lr"])
    {'kl': 0.0}

    Raises:
        TypeError: they are no mapping from names, or one is no number.
        ValueError: one is not finite, or its name is no text.
        WorkloadError: an optimizer has a number of this name.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"numbers is {kind_of(given)}: give a mapping from names, numbers={{'kl': 0.0}}")
    taken = {*of_optimizer}
    for name, value in given.items():
        if not isinstance(name, str):
            raise TypeError(f"numbers has the key {name!r}: names are strings, numbers={{'kl': 0.0}}")
        if not is_text(name) or not name:
            raise ValueError(f"numbers has the name {name!r}: {NO_TEXT if name else 'a name is not empty'}")
        if "." in name:
            raise ValueError(f"numbers has the name {name!r}: a name with a dot is that of one of several optimizers")
        if name in taken or any(other.endswith(f".{name}") for other in taken):
            raise WorkloadError(
                f"numbers has the name {name!r}, which is a number of the optimizer: it is in state.hyper anyway; give "
                "yours another name"
            )
        if isinstance(value, tuple):
            raise TypeError(f"numbers={{{name!r}: {value!r}}}: it is one number")
    return {name: float(check_hyper(name, value)) for name, value in given.items()}  # type: ignore[arg-type]


def set_own(numbers: dict[str, float], changes: Mapping[str, Hyper]) -> Mapping[str, Hyper]:
    """Set those of the changes that are numbers of one's own; the others.

    >>> numbers = {"kl": 0.0}
    >>> set_own(numbers, {"kl": 0.5, "lr": 0.1}), numbers
    ({'lr': 0.1}, {'kl': 0.5})
    """
    own = {name: value for name, value in changes.items() if name in numbers}
    numbers.update({name: value[0] if isinstance(value, tuple) else value for name, value in own.items()})
    return {name: value for name, value in changes.items() if name not in own}


def differences(ours: Mapping[str, float], saved: Mapping[str, float]) -> Iterator[str]:
    """A note for each number that only one side has.

    >>> list(differences({"kl": 0.0}, {"kl": 0.5, "beta": 1.0}))
    ["the number 'beta': it was saved, and is not brought back since the workload has none of this name"]
    """
    for name in sorted(ours.keys() - saved.keys()):
        yield f"the number {name!r}: it is not in the checkpoint, and begins as it is now"
    for name in sorted(saved.keys() - ours.keys()):
        yield f"the number {name!r}: it was saved, and is not brought back since the workload has none of this name"
