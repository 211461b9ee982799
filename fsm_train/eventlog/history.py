"""The history of a training in its log: what the lines have of it already, and what a header has to add.

Rule of this file: an epoch is in the history if a line says that it ended, or if a header says so. A header adds the
epochs that no line before it has, and only these, so that it does not grow with the training.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping

import orjson

from ..core.history import History
from ..core.phase import Phase
from ..encoding import Json, numbers
from .entry import Entry
from .errors import LogError
from .lines import HEADER, HISTORY, decode_numbers

_EPOCH_END = Phase.EPOCH_END.value

ADDS_EPOCHS = frozenset({HEADER, _EPOCH_END})
"""The events of lines that can add to the history; others need not be shown to it."""


def ended_epoch(entry: Entry) -> Mapping[str, Json] | None:
    """The metrics that this line adds to the history, as JSON; None if it ends no epoch."""
    return entry.body["metrics"] if entry.event == _EPOCH_END and not entry.body.get("error") else None


def shared_epochs(logged: Iterable[bytes], history: Iterable[Mapping[str, float]]) -> int:
    """The number of epochs at the beginning of a history that a log has exactly so, to the last bit."""
    shared = 0
    for line, metrics in zip(logged, history, strict=False):
        if line != orjson.dumps(numbers(metrics)):
            break
        shared += 1
    return shared


class LoggedHistory:
    """The history up to the line of a log that was seen last. Superseded lines must not be shown to it.

    An epoch is held as JSON, in a third of the memory, until the history is asked for.

    Args:
        path: the path of the log, for errors.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._decoded: History[Mapping[str, float]] = History()
        self._encoded: list[bytes] = []  # the epochs after those

    def see(self, entry: Entry) -> None:
        """Take up a line.

        Raises:
            LogError: it is a header that continues a longer history than there is.
        """
        if entry.event == HEADER:
            start = entry.body["start"]
            self._cut(start.get("held", 0), entry.number)
            self._encoded += map(orjson.dumps, start["history"])
        elif (metrics := ended_epoch(entry)) is not None:
            self._encoded.append(orjson.dumps(metrics))

    def whole(self) -> History[Mapping[str, float]]:
        """The history.

        Raises:
            CannotDecodeError: a value is no number.
        """
        self._decoded += tuple(decode_numbers(orjson.loads(line)) for line in self._encoded)
        self._encoded.clear()
        return self._decoded

    def _cut(self, held: int, number: int) -> None:
        decoded = len(self._decoded)
        if held > decoded + len(self._encoded):
            there = decoded + len(self._encoded)
            what = f"it continues a history of {held} epochs, and the lines before it have {there}"
            raise LogError(what, path=self._path, line=number)
        del self._encoded[max(0, held - decoded) :]
        self._decoded = self._decoded[:held]


class LoggedHistories:
    """The history at each line of a log, as JSON. All lines are shown to it, superseded ones too."""

    def __init__(self) -> None:
        self._seqs: list[int] = []
        self._histories: list[History[bytes]] = []  # at the lines with these `seq` and after them

    def see(self, entry: Entry) -> None:
        """Take up a line."""
        if entry.event == HEADER:
            start, continues = entry.body["start"], entry.body.get("continues")
            before: History[bytes] = self.at(continues) if type(continues) is int else History()
            now = before[: start.get("held", 0)] + tuple(map(orjson.dumps, start["history"]))
        elif (metrics := ended_epoch(entry)) is not None:
            now = self._histories[-1] + (orjson.dumps(metrics),)
        else:
            return
        self._seqs.append(entry.seq)
        self._histories.append(now)

    def at(self, seq: int) -> History[bytes]:
        """The history after the line with this `seq`."""
        lines = bisect.bisect_right(self._seqs, seq)
        return self._histories[lines - 1] if lines else History()


MOST_BYTES = 1 << 20
"""The most JSON of a history that is put into one line, which readers have to hold in memory."""


def header_lines(header: dict[str, Json]) -> Iterator[tuple[str, dict[str, Json]]]:
    """The lines that a header is written in, each with its event: its own, and those of a long history."""
    start = header["start"]
    first, *more = in_lines(start["history"], MOST_BYTES)
    further = sum(map(len, more))
    yield HEADER, {**header, "start": {**start, "history": first, **({"further": further} if further else {})}}
    for epochs in more:
        yield HISTORY, {"history": epochs}


def in_lines(epochs: list[Json], most: int) -> Iterator[list[Json]]:
    """The epochs in lists of at most so many bytes of JSON each, or of one epoch; at least one list.

    >>> list(in_lines([{"loss": 1.0}, {"loss": 0.5}, {"loss": 0.25}], 30))
    [[{'loss': 1.0}, {'loss': 0.5}], [{'loss': 0.25}]]
    """
    line: list[Json] = []
    size = 0
    for metrics in epochs:
        size += len(orjson.dumps(metrics)) + 1
        if line and size > most:
            yield line
            line, size = [], len(orjson.dumps(metrics)) + 1
        line.append(metrics)
    yield line
