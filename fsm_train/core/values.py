"""Immutable values: the mappings inside a State, and what may be kept as a callback's memory."""

from __future__ import annotations

import contextlib
import difflib
import functools
import numbers
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Never, NoReturn, TypeVar, cast, get_args, get_type_hints

import attrs

from .errors import FactError, MetricError

K = TypeVar("K")
V = TypeVar("V")

_SCALARS = frozenset({int, float, str, bool, type(None)})


class FrozenMap(dict[K, V]):
    """A dictionary that cannot be written to.

    It is a `dict`, because that is read at the speed of C, and JSON encoders and `==` know it.
    """

    __slots__ = ()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            "this mapping is part of an immutable record: make a new one instead of writing to it. A callback returns "
            "what is to change, as in Transition(hyper={'lr': …})"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self),))

    def __copy__(self) -> FrozenMap[K, V]:
        return self

    def __deepcopy__(self, memo: object) -> FrozenMap[K, V]:
        return self

    def __repr__(self) -> str:
        return dict.__repr__(self)


EMPTY: FrozenMap[Any, Never] = FrozenMap()


def frozen_map(mapping: Mapping[str, Any]) -> FrozenMap[str, Any]:
    """The mapping itself if it is frozen already, else a frozen copy."""
    if type(mapping) is FrozenMap:
        return mapping
    if not isinstance(mapping, Mapping):
        raise TypeError(f"a mapping was expected, not {mapping!r}")
    return FrozenMap(mapping)


class Facts(FrozenMap[str, float]):
    """What was measured at this phase, by name.

    Facts that cost something are measured only for a callback that `needs` them, so reading
    another one is an error that says how to ask for it.
    """

    __slots__ = ()

    def __missing__(self, name: str) -> Never:
        known = ", ".join(sorted(self)) or "nothing"
        raise FactError(
            f"the fact {name!r} is not here: no callback asked for it at this phase, or it could not be measured "
            f"(measured: {known}). Write needs={{{name!r}}} at the callback that reads it, and consult it where "
            "the fact is known; where it may be missing (a skipped batch has no loss), read it with .get()"
        )


NO_FACTS = Facts()


class Metrics(FrozenMap[str, float]):
    """What an epoch or a validation measured, by name. Reading one that is not there says which there are."""

    __slots__ = ()

    def __missing__(self, name: str) -> Never:
        known = ", ".join(self) or "none yet"
        close = difflib.get_close_matches(name, self, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise MetricError(
            f"there is no metric {name!r} here: there are {known}.{meant} Those of a validation are called valid_…, "
            "and are missing in an epoch that had none; where that may be, read it with .get()"
        )


def as_metrics(mapping: Mapping[str, float]) -> Metrics:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"a mapping was expected, not {mapping!r}")
    return mapping if type(mapping) is Metrics else Metrics(mapping)


def same_numbers(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two mappings have equal numbers by name; a NaN equals another, wherever they come from."""
    return one.keys() == other.keys() and all(
        value == other[name] or (value != value and other[name] != other[name]) for name, value in one.items()
    )


def as_facts(mapping: Mapping[str, float]) -> Facts:
    return mapping if type(mapping) is Facts else Facts(mapping)


@attrs.frozen
class _Frozen:
    """How a record refuses to be written to. Others have a way of writing of their own: validators, say, run in it."""


def unsaveable(value: object, path: str = "memory") -> str | None:
    """Why `value` is not an immutable value that survives JSON, or None if it is one.

    Such a value is None, a bool, a number, a string, a tuple of such values, or a frozen attrs
    record of them.
    """
    kind = type(value)
    if kind in _SCALARS:
        return None
    if kind is tuple:
        parts: Iterator[tuple[str, object]] = (
            (f"{path}[{i}]", part) for i, part in enumerate(cast("tuple[object, ...]", value))
        )
    elif attrs.has(kind):
        if kind.__setattr__ is not _Frozen.__setattr__:
            return f"{path} is a {kind.__name__}, which can be written to: decorate it with attrs.frozen"
        parts = ((f"{path}.{field.name}", getattr(value, field.name)) for field in attrs.fields(kind))
    else:
        advice = _ADVICE.get(kind.__name__, "use numbers, strings, tuples and frozen attrs records of them")
        if isinstance(value, (numbers.Real, bool)) or kind.__name__ in ("bool", "bool_"):
            advice = f"write {_plain_kind(value)}(…) around it"
        return (
            f"{path} is a {kind.__name__} ({value!r:.80}), which is not an immutable value that survives JSON: {advice}"
        )
    return next(filter(None, (unsaveable(part, where) for where, part in parts)), None)


def _plain_kind(value: object) -> str:
    """The type of Python that holds this number of NumPy or the like."""
    return next((kind.__name__ for base, kind in _PLAIN if isinstance(value, base)), "float")


_PLAIN: tuple[tuple[type, type], ...] = ((numbers.Integral, int), (numbers.Real, float), (object, bool))


class SavedMemory(ABC):
    """A memory as it came from a file. Only its callback knows the classes of the records in it.

    Attributes:
        json: as it stands there.
    """

    json: Any

    @abstractmethod
    def decode_with(self, classes: Mapping[str, type]) -> object:
        """The memory, for a callback that has records of these classes, by name."""


def record_classes(value: object) -> dict[str, type]:
    """The attrs classes, by name, of the records in a value, and of those that their fields may hold.

    A class in the place of a record stands for one of its records.
    """
    found: dict[str, type] = {}
    ahead: list[object] = [value]
    while ahead:
        part = ahead.pop()
        if isinstance(part, tuple):
            ahead.extend(part)
            continue
        kind = part if isinstance(part, type) else type(part)
        if attrs.has(kind) and kind.__name__ not in found:
            found[kind.__name__] = kind
            if not isinstance(part, type):
                ahead.extend(getattr(part, field.name) for field in attrs.fields(kind))
            for base in kind.__mro__:
                names = {**getattr(sys.modules.get(base.__module__), "__dict__", {}), kind.__name__: kind}
                for annotation in vars(base).get("__annotations__", {}).values():
                    ahead.extend(types_in(annotation, names))
    return found


def types_in(annotation: object, names: Mapping[str, Any]) -> tuple[type, ...]:
    """The types that an annotation speaks of; none if it takes names that are not here, of a type checker, say."""
    holder = SimpleNamespace(__annotations__={"it": annotation})
    with contextlib.suppress(NameError, AttributeError, TypeError, SyntaxError):
        return tuple(_plain_types(get_type_hints(holder, dict(names))["it"]))
    return ()


def _plain_types(hint: object) -> Iterator[type]:
    if isinstance(hint, type) and not get_args(hint):
        yield hint
    for argument in get_args(hint):
        yield from _plain_types(argument)


_ADVICE = {
    "list": "use a tuple",
    "dict": "use a frozen attrs record, or a tuple of pairs",
    "set": "use a sorted tuple",
    "frozenset": "use a sorted tuple",
    "ndarray": "use a tuple of floats",
    "Decimal": "write float(…) around it",
    "Tensor": "keep what was measured, as a float, and leave tensors to the workload",
}


@functools.lru_cache
def batch_size_alone(samples: float) -> Facts:
    """The facts where nothing was asked for."""
    return Facts(batch_size=samples)
