"""The finished epochs of a log, kept on the disk: there can be as many as there are lines.

Rule of this file: what is kept in memory does not grow with the number of epochs.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import orjson

from ..core.state import Hyper
from ..encoding import encode, numbers
from ..wording import losses_first
from .lines import decode_hyper, decode_numbers

IN_MEMORY = 1 << 20
"""The most bytes of epochs that are not yet on the disk."""

MAX_METRICS = 200
"""The most metrics that are told apart: a row for a person has no more columns."""


class Epoch(NamedTuple):
    """A finished epoch.

    Attributes:
        epoch: the number of finished epochs, this one included.
        step: the number of optimizer steps so far.
        rate: the learning rate of its last step; None if there is none.
        metrics: by name.
    """

    epoch: int
    step: int
    rate: Hyper | None
    metrics: Mapping[str, float]


class Epochs:
    """Finished epochs in their order; they can be read again and again.

    >>> epochs = Epochs()
    >>> epochs.append(Epoch(1, 4, 0.1, {"train_loss": 0.5}))
    >>> list(epochs), len(epochs), epochs.names
    ([Epoch(epoch=1, step=4, rate=0.1, metrics={'train_loss': 0.5})], 1, ['train_loss'])

    Attributes:
        counts: by name of a metric, the number of epochs that measured it, of the first `MAX_METRICS` names.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 -- closed in the next line
        weakref.finalize(self, self._file.close)
        self._count = 0
        self.counts: dict[str, int] = {}

    def append(self, epoch: Epoch) -> None:
        rate = {} if epoch.rate is None else {"lr": encode(epoch.rate)}
        self._file.write(orjson.dumps((epoch.epoch, epoch.step, rate, numbers(epoch.metrics))) + b"\n")
        self._count += 1
        for name in epoch.metrics:
            if name in self.counts or len(self.counts) < MAX_METRICS:
                self.counts[name] = self.counts.get(name, 0) + 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Epoch]:
        self._file.seek(0)
        for raw in self._file:
            epoch, step, rate, metrics = orjson.loads(raw)
            yield Epoch(epoch, step, decode_hyper(rate).get("lr"), decode_numbers(metrics))

    @property
    def names(self) -> list[str]:
        """The metrics of these epochs, the losses first; at most `MAX_METRICS`."""
        return losses_first(self.counts)

    def sampled(self, most: int) -> dict[str, list[float]]:
        """By name of a metric, at most about `most` of its values at equal distances, and the last one always."""
        values: dict[str, list[float]] = {name: [] for name in self.counts}
        indices = {name: itertools.count() for name in self.counts}
        for epoch in self:
            for name in epoch.metrics.keys() & values.keys():
                index, last = next(indices[name]), self.counts[name] - 1
                if index == last or index % max(1, math.ceil(self.counts[name] / most)) == 0:
                    values[name].append(epoch.metrics[name])
        return values
