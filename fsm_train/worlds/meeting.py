"""How a rank meets the others: with rows, with numbers by name, and with texts.

Rule of this file: all ranks that take part in an exchange see the same rows, so what follows from them, another
exchange or an error, follows on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from ..core.reductions import Weighed
from ..core.under_way import state_under_way
from ..encoding import Json
from .disagreement import About, all_raised, as_bytes, different_decisions, different_places, digest
from .rows import (
    NUMBERS,
    PLACES,
    Row,
    Topic,
    common_signal,
    number_values,
    numbers_of,
    rows_for_text,
    text_of,
    text_values,
)

Numbers = Mapping[str, Weighed]

_LONG = 8
"""Rows from which on a text is given as a whole, where the exchange can: that takes as long as some five rows."""


class Exchange(Protocol):
    """The one primitive that ranks need: give a row, and get the rows of all ranks, in their order.

    A function will do. One that can tell the others of a failure has a method `fail(reason: str)` too: what they wait
    for, or will wait for, then raises a `PeerError` at once. With `failure(error, place)` it says what another rank
    failed with, if the error that was raised at this place follows from that; otherwise None. With
    `gather(value, place)` it gives the values of all ranks, of any size, in one exchange.

    >>> def alone(row):
    ...     return [row]
    """

    def __call__(self, row: Sequence[float], /) -> Sequence[Sequence[float]]: ...


class Meeting:
    """This rank's part in the exchanges of a training.

    Args:
        exchange: of rows.
        signal_here: the signal that this rank was sent, if any.
        act_on: is called with a signal that the ranks agreed on.
        workloads: those whose run says, where the ranks differ, what this one has.

    Attributes:
        ranks: how many there are, known from the first exchange on.
        exchanges: how many this rank took part in.
        batches: how many it fetched since the last one, by `batch_fetched`.
        lost: whether an exchange failed. There is none after it: the ranks would no longer meet.
    """

    def __init__(
        self,
        exchange: Exchange,
        signal_here: Callable[[], str | None],
        act_on: Callable[[str], None],
        workloads: Sequence[object] = (),
    ) -> None:
        self._exchange = exchange
        self._signal_here = signal_here
        self._act_on = act_on
        self._workloads = workloads
        self.ranks = 1
        self.exchanges = 0
        self.batches = 0
        self.lost = False

    def meet(self, topic: Topic, *values: float, about: About | None = None) -> Sequence[Sequence[float]]:
        """Give these values, and get those of each rank. What the exchange is about has to be the same on all.

        Raises:
            DisagreementError: it is not, or a rank is at another place.
            PeerError: a rank failed.
        """
        rows = self._rows(topic, digest(about or {}), values)
        if len({row.digest for row in rows}) > 1:
            self.lost = True  # all ranks raise
            raise different_decisions(self._had_by_each(about or {}))
        return [row.values for row in rows]

    def numbers(self, topic: Topic, given: Numbers, names: Iterable[str], about: About | None = None) -> list[Numbers]:
        """The numbers of each rank with their weights, for these names and those of other ranks."""
        order = sorted(names)
        found = self._numbers(topic, given, order, about)
        if found is None:
            of_all = [orjson.loads(text) for text in self._texts(as_bytes(order))]
            order = sorted({name for names in of_all for name in names})
            found = self._numbers(topic, given, order, about)
        assert found is not None, "the names are those of all ranks"
        return found

    def values(self, topic: Topic, own: Json) -> list[Any]:
        """Give a value, and get that of each rank. What is empty is None, and costs one exchange alone."""
        texts = self._texts(as_bytes(own) if own else b"", topic)
        return [orjson.loads(text) if text else None for text in texts]

    def fail(self, reason: str) -> None:
        """Free the other ranks, which wait for this one or will, if the exchange can."""
        if not self.lost:
            self.lost = True
            getattr(self._exchange, "fail", _nobody_to_tell)(reason)

    def blame(self, error: BaseException, place: str) -> None:
        """Raise what another rank failed with, if what was raised here, at this place, follows from that.

        Raises:
            PeerError: a rank failed, or is gone.
            WorkloadError: the ranks waited for each other at different places.
        """
        found = None if self.lost else getattr(self._exchange, "failure", _nobody_failed)(error, place)
        if found is not None:
            self.lost = True
            raise found from error

    def _rows(self, topic: Topic, about: int, values: Sequence[float]) -> list[Row]:
        row = Row(topic, about, self._signal_here(), tuple(values))
        self.exchanges += 1
        self.batches = 0
        try:
            rows = [Row.unpacked(numbers) for numbers in self._exchange(row.packed())]
        except BaseException:
            self.lost = True
            raise
        self.ranks = len(rows)
        if len({row.topic for row in rows}) > 1:
            before, self.lost = self.lost, True
            raise different_places([PLACES[row.topic] for row in rows], () if before else self._had_by_each({}))
        if signal := common_signal(rows):
            self._act_on(signal)
        return rows

    def _had_by_each(self, about: About) -> list[About]:
        """What each rank has where it is, and what the exchange was about: for words, once they differ."""
        own = {**about, **all_raised(state_under_way(*self._workloads))}
        return [orjson.loads(text) for text in self._texts(as_bytes(own))]

    def _numbers(self, topic: Topic, given: Numbers, order: Sequence[str], about: About | None) -> list[Numbers] | None:
        """None if the ranks have other names."""
        found: list[dict[str, Weighed]] = []
        for begin in range(0, max(len(order), 1), NUMBERS):
            names = order[begin : begin + NUMBERS]
            rows = self.meet(topic, float(digest(order)), *number_values(given, names), about=about)
            if len({values[0] for values in rows}) > 1:
                return None
            found = found or [{} for _ in rows]
            for numbers, values in zip(found, rows, strict=True):
                numbers |= numbers_of(values[1:], names)
        return list(found)

    def _texts(self, text: bytes, topic: Topic = Topic.TEXT) -> list[bytes]:
        """The text of each rank, which its length goes before."""
        lengths = [int(row.values[0]) for row in self._rows(topic, 0, (float(len(text)),))]
        count = max(map(rows_for_text, lengths))
        if count >= _LONG and hasattr(self._exchange, "gather"):
            return self._gathered(text, PLACES[topic])
        values: list[list[float]] = [[] for _ in lengths]
        parts = list(text_values(text))
        for i in range(count):
            rows = self._rows(Topic.TEXT, 0, parts[i] if i < len(parts) else ())
            for of_rank, row in zip(values, rows, strict=True):
                of_rank += row.values
        return [text_of(of_rank, length) for of_rank, length in zip(values, lengths, strict=True)]

    def _gathered(self, text: bytes, place: str) -> list[bytes]:
        self.exchanges += 1
        exchange: Any = self._exchange
        try:
            return list(exchange.gather(text, place))
        except BaseException:
            self.lost = True
            raise


def _nobody_to_tell(reason: str) -> None:
    """The exchange is a plain function: the others learn of it when their wait for this rank ends."""


def _nobody_failed(error: BaseException, place: str) -> BaseException | None:
    """The exchange is a plain function: it knows of no failure."""
    return None
