"""A pass over the data on several ranks: what is known of their shares, and which batches come.

Rule of this file: nothing is exchanged here. What the ranks gave is judged, and the answer is the same on each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import attrs

from ..core.errors import WorkloadError
from ..core.reductions import exact_sum

KnownSizes = tuple[int, float, float]
"""Of a pass that is known before: the number of batches, what each counts, and what the last one counts."""

UNKNOWN = -1.0
LOOK_EVERY = 0.2
"""Seconds between two exchanges that carry nothing but signals."""

_MOST_BATCHES = 1_000


@attrs.define
class Pass:
    """A pass over this rank's share of the data.

    Attributes:
        known: what is known of it; None if nothing is.
        of_all: what each rank knows of its pass, so that they need not ask each other for each batch; empty unless all
            of them know.
        fetched: batches that were fetched.
        size: what this rank's batch under way counts; None if it has none.
        counted: what its batches counted together that were trained or evaluated with.
        own, of_any: batches that this rank had, and that some rank had.
    """

    known: KnownSizes | None = None
    of_all: Sequence[KnownSizes] = ()
    fetched: int = 0
    size: float | None = None
    counted: float = 0.0
    own: int = 0
    of_any: int = 0

    def values(self) -> tuple[float, ...]:
        """What the ranks are told of this pass."""
        return (UNKNOWN,) * 3 if self.known is None else tuple(map(float, self.known))

    def compare(self, given: Sequence[Sequence[float]]) -> None:
        """Take note of what all ranks know of their passes, by their `values`."""
        known = [(int(batches), each, last) for batches, each, last, *_ in given]
        self.of_all = known if all(batches != UNKNOWN for batches, _, _ in known) else ()

    def sizes(self) -> list[float | None]:
        """What the batch that was taken last counts on each rank, by what all know; None for one that has none."""
        return [expected(known, self.fetched - 1) for known in self.of_all]

    def take(self, size: float | None) -> None:
        """Take what was fetched.

        Raises:
            WorkloadError: the ranks rely on what was known, and this is something else.
        """
        if self.of_all and self.known is not None and size != (due := expected(self.known, self.fetched)):
            raise WorkloadError(
                f"batch {self.fetched} of a pass over the data {_counts(size)}, but by known_sizes={self.known} it "
                f"{_counts(due)}: the other ranks rely on that. Let known_sizes be None where it is not known"
            )
        self.size = size
        self.own += size is not None
        self.fetched += 1


def expected(known: KnownSizes, batch: int) -> float | None:
    """What a batch of the pass counts, the first being number 0; None after the last one.

    >>> [expected((3, 32, 16), batch) for batch in range(4)]
    [32, 32, 16, None]
    """
    batches, each, last = known
    return None if batch >= batches else last if batch == batches - 1 else each


def _counts(size: float | None) -> str:
    return "is missing" if size is None else f"counts {size}"


def union_size(sizes: Sequence[float]) -> float:
    """What the batches of all ranks count together; a whole number is an int.

    >>> union_size([32.0, 31.0]), union_size([0.5, 0.25])
    (63, 0.75)
    """
    total = exact_sum(sizes)
    return int(total) if total.is_integer() else total


def rank_weight(size: float, sizes: Sequence[float]) -> float:
    """What makes the mean over ranks of their mean losses that of the union: the size over the mean size.

    >>> rank_weight(3, [3.0, 1.0]), rank_weight(0, [0.0, 0.0])
    (1.5, 1.0)
    """
    if len(set(sizes)) == 1:
        return 1.0  # exactly, also of sizes that are no whole numbers
    return size * len(sizes) / exact_sum(sizes)


@attrs.define
class LeftOut:
    """The training batches that a rank had while another had none any more: all stop with the shortest.

    Attributes:
        batches: how many of each rank were left out, as far as that is known.
        passes: in how many passes.
    """

    batches: list[float] = attrs.Factory(list)
    passes: int = 0

    def add(self, there: Sequence[bool], known: Sequence[float], fetched: int) -> None:
        """A pass ended: which ranks had a further batch, how many batches each has by `known_sizes`, how many came."""
        of_each = [
            (total - fetched if total != UNKNOWN else 1.0) if further else 0.0
            for further, total in zip(there, known, strict=True)
        ]
        self.passes += any(of_each)
        self.batches = [before + now for before, now in zip(self.batches or [0.0] * len(of_each), of_each, strict=True)]

    def note(self) -> str:
        """What was left out, in a sentence; "" if nothing was."""
        if not self.passes:
            return ""
        parts = ", ".join(f"{batches:.0f} of rank {rank}" for rank, batches in enumerate(self.batches) if batches)
        return (
            f"training batches were left out, since another rank had none any more: at least {parts}, in "
            f"{self.passes} pass{'es' * (self.passes > 1)} over the data. Give each rank as many batches"
        )


@attrs.define
class SignalInterval:
    """How many batches may pass without an exchange, before one that carries nothing but signals.

    Attributes:
        batches: how many; the ranks agree on it.
        fixed: whether it stays so. Otherwise it is worked out of the time that batches take.
        clock: a clock in seconds.
    """

    batches: int = 1
    fixed: bool = False
    clock: Callable[[], float] = time.monotonic
    _since: float = attrs.field(init=False, default=math.nan)

    def seconds_per_batch(self) -> float:
        """How long a batch took on this rank since this was asked before; NaN if that is not known."""
        now = self.clock()
        took, self._since = (now - self._since) / self.batches, now
        return took

    def agree(self, seconds: Sequence[float]) -> None:
        """Choose the number by the slowest rank; at most four times the one before, since first batches differ."""
        known = [took for took in seconds if took == took]
        if self.fixed or not known:
            return
        wanted = LOOK_EVERY / max(max(known), LOOK_EVERY / _MOST_BATCHES)
        self.batches = max(1, min(4 * self.batches, round(wanted)))
