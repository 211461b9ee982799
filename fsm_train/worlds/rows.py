"""The row that ranks exchange: its width, what stands where, and how texts and numbers by name fit into rows.

Rule of this file: a row has the same width whatever it is about. So ranks that are at different places still meet, see
where the others are, and all say so; collectives of different sizes would end the process.

    topic, digest, signal, 13 values

The topic is what the rank is about to agree on. The digest is of what has to be the same on all ranks. The signal is
the one that this rank was sent, which each row carries.
"""

from __future__ import annotations

import enum
import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence

import attrs

from ..core.reductions import Weighed

WIDTH = 16
HEAD = 3
ROOM = WIDTH - HEAD
"""How many values a row has room for."""

NUMBERS = (ROOM - 1) // 2
"""How many numbers with their weights a row has room for, beside a digest of their names."""

_BYTES = 6
"""Of text in one value: whole numbers of 48 bits are exact in a float."""

ABSENT = -1.0
"""The weight of a number that a rank does not have. No weight is below 0."""


class Topic(enum.IntEnum):
    """What the ranks agree on in an exchange."""

    JOIN = 1  # the ranks have made their workloads
    PREPARE = 2
    OPEN = 3  # a pass over the training data begins: whether their shares are even
    OPEN_VALID = 4
    FETCH = 5
    FETCH_VALID = 6
    SIGNALS = 7  # nothing but signals: whether one was sent to a rank
    FACTS = 8
    MEASURE = 9
    MEASURE_VALID = 10
    SAVE = 11  # before a checkpoint
    OPERATION = 12  # before each operation, with agree="phase"
    FINISH = 13
    TEXT = 14  # what differs, in words
    RESERVE = 15  # the folders that rank 0 holds for all
    WRITE = 16  # a checkpoint that all ranks write into
    RESTORE = 17
    TOGETHER = 18  # a batch for which all ranks gather a sharded model, as in a prediction


PLACES: Mapping[Topic, str] = {
    Topic.JOIN: "where its workload is made",
    Topic.PREPARE: "the begin of a run",
    Topic.OPEN: "the begin of a pass over the training data",
    Topic.OPEN_VALID: "the begin of a validation",
    Topic.FETCH: "a batch that was fetched",
    Topic.FETCH_VALID: "a validation batch that was fetched",
    Topic.SIGNALS: "a look for signals between two batches",
    Topic.FACTS: "facts that were measured",
    Topic.MEASURE: "the training metrics",
    Topic.MEASURE_VALID: "the metrics of a validation",
    Topic.SAVE: "a checkpoint",
    Topic.OPERATION: "the begin of an operation",
    Topic.FINISH: "the end of a run",
    Topic.TEXT: "a text that says what differs",
    Topic.RESERVE: "the folders of its checkpoints",
    Topic.WRITE: "a checkpoint that is being written",
    Topic.RESTORE: "a checkpoint to restore",
    Topic.TOGETHER: "a batch that all ranks compute together",
}
"""Each topic in words, for sentences such as "rank 1 waits at …"."""


@attrs.frozen
class Row:
    """What one rank gives to an exchange.

    Attributes:
        topic: what it is about to agree on.
        digest: 48 bits of a hash of what has to be the same on all ranks; 0 of nothing.
        signal: the name of the signal that the rank was sent; None for none.
        values: at most `ROOM` of them.

    >>> Row.unpacked(Row(Topic.FETCH, values=(1.0, 32.0)).packed()).values[:2]
    (1.0, 32.0)
    """

    topic: Topic
    digest: int = 0
    signal: str | None = None
    values: tuple[float, ...] = ()

    def packed(self) -> tuple[float, ...]:
        """The row as numbers, `WIDTH` of them."""
        head = (float(self.topic), float(self.digest), signal_code(self.signal))
        return (*head, *self.values, *itertools.repeat(0.0, ROOM - len(self.values)))

    @classmethod
    def unpacked(cls, numbers: Sequence[float]) -> Row:
        topic, digest, code, *values = numbers
        return cls(Topic(int(topic)), int(digest), signal_name(code), tuple(values))


# ------------------------------------------------------------------------------------------ signals

_OTHER = 0.5  # less than any signal's number


def signal_code(name: str | None) -> float:
    """A signal's number; 0 for none. One that is not known here is some signal.

    >>> signal_code(None), signal_code("SIGTERM"), signal_name(signal_code("an alarm"))
    (0.0, 15.0, 'a signal')
    """
    if name is None:
        return 0.0
    return float(signal.Signals[name]) if name in signal.Signals.__members__ else _OTHER


def signal_name(code: float) -> str | None:
    if code == _OTHER:
        return "a signal"
    return signal.Signals(int(code)).name if code else None


def common_signal(rows: Sequence[Row]) -> str | None:
    """The signal that the ranks act on: of several that with the largest number; None if no rank was sent one."""
    return signal_name(max(signal_code(row.signal) for row in rows))


# ------------------------------------------------------------------------------------------ texts


def text_values(text: bytes) -> Iterator[tuple[float, ...]]:
    """The values of the rows that carry this text, which its length goes before."""
    per_row = ROOM * _BYTES
    for begin in range(0, len(text), per_row):
        part = text[begin : begin + per_row]
        yield tuple(
            float(int.from_bytes(part[i : i + _BYTES].ljust(_BYTES, b"\0"), "big")) for i in range(0, len(part), _BYTES)
        )


def rows_for_text(length: int) -> int:
    """How many rows a text of so many bytes takes."""
    return -(-length // (ROOM * _BYTES))


def text_of(values: Sequence[float], length: int) -> bytes:
    """The text that these values carry, `length` bytes of it."""
    return b"".join(int(value).to_bytes(_BYTES, "big") for value in values)[:length]


# ------------------------------------------------------------------------------------------ numbers


def number_values(given: Mapping[str, Weighed], names: Sequence[str]) -> tuple[float, ...]:
    """The numbers of these names with their weights, one after the other; absent ones are marked."""
    return tuple(itertools.chain.from_iterable(given.get(name, (0.0, ABSENT)) for name in names))


def numbers_of(values: Sequence[float], names: Sequence[str]) -> dict[str, Weighed]:
    """The numbers that a rank has, by name."""
    pairs = zip(values[::2], values[1::2], strict=False)
    return {name: pair for name, pair in zip(names, pairs, strict=False) if pair[1] != ABSENT}
