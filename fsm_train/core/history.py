"""The history of a training: a sequence that cannot be written to, and that grows by one in constant time.

Rule of this file: what is below the length of a `History` never changes. Several share one list, each as far as its
own length; only the one that reaches to its end may append to it, and each other one copies first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any, SupportsIndex, TypeVar, overload

from .values import FrozenMap, as_metrics

T_co = TypeVar("T_co", covariant=True)


class History(Sequence[T_co]):
    """An immutable sequence, used as a tuple is and equal to one with the same items.

    A tuple that grows is copied each time, so that the 100,000th epoch would cost a hundred times what the 1,000th
    does. `history + (item,)` and `history[:n]` copy nothing here.

    >>> first = History([1.0, 0.5])
    >>> longer = first + (0.25,)
    >>> first, longer, longer[:2] == first, longer == (1.0, 0.5, 0.25)
    ((1.0, 0.5), (1.0, 0.5, 0.25), True, True)

    Args:
        items: what it holds, in order.
    """

    __slots__ = ("_items", "_length")

    _items: list[T_co]
    _length: int

    def __init__(self, items: Iterable[T_co] = ()) -> None:
        own = list(items)
        object.__setattr__(self, "_items", own)
        object.__setattr__(self, "_length", len(own))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a history cannot be written to: history + (…,) is a longer one ({name!r} was set)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a history cannot be written to ({name!r} was deleted)")

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: SupportsIndex) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> History[T_co]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> T_co | History[T_co]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if (start, step) == (0, 1):
                return _prefix(self._items, max(0, stop))
            return History(self._items[i] for i in range(start, stop, step))
        at = index.__index__()
        if not -self._length <= at < self._length:
            raise IndexError(f"there is no item {at}: the history has {self._length}")
        return self._items[at % self._length]

    def __iter__(self) -> Iterator[T_co]:
        items = self._items
        return map(items.__getitem__, range(self._length))

    def __reversed__(self) -> Iterator[T_co]:
        return map(self._items.__getitem__, range(self._length - 1, -1, -1))

    def __add__(self, other: Sequence[Any]) -> History[Any]:
        if not isinstance(other, (tuple, History)):
            return NotImplemented
        more = tuple(other)
        items: list[Any] = self._items
        if len(items) == self._length > 0:  # an empty one is the default of each training, and keeps no items alive
            items.extend(more)
            # Another thread may have appended between these two lines: what it put there is not overwritten.
            length = self._length + len(more)
            if all(map(is_, items[self._length : length], more)):
                return _prefix(items, length)
        return History((*self, *more))

    def __radd__(self, other: tuple[Any, ...]) -> History[Any]:
        return History((*other, *self)) if isinstance(other, tuple) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> History[T_co]:
        return History(tuple(self) * times)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (tuple, History)):
            return NotImplemented
        if isinstance(other, History) and other._items is self._items:
            return other._length == self._length
        return len(self) == len(other) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (tuple(self),))

    def continues(self, other: History[Any]) -> bool:
        """Whether it is known, without a look at the items, that it begins with those of another, or is that one."""
        return self._items is other._items and self._length >= other._length

    def __copy__(self) -> History[T_co]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> History[T_co]:
        return History(copy.deepcopy(item, memo) for item in self)


def _prefix(items: list[Any], length: int) -> History[Any]:
    """The first items of a list that is shared."""
    prefix: History[Any] = object.__new__(History)
    object.__setattr__(prefix, "_items", items)
    object.__setattr__(prefix, "_length", length)
    return prefix


NO_EPOCHS: History[Any] = History()


def as_history(metrics: Iterable[Mapping[str, float]]) -> History[Mapping[str, float]]:
    """The metrics of epochs as a history: itself if it is one, else of frozen copies.

    Raises:
        TypeError: an item is no mapping.
    """
    if type(metrics) is History:
        return metrics
    return History(each if isinstance(each, FrozenMap) else as_metrics(each) for each in metrics)
