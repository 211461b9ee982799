"""Ranks of a training as threads of one process, which meet as processes of a group do.

Rule of this file: one rank runs at a time, until it waits for the others. So the same training takes the same course
each time, and that all wait is seen at once, where processes would wait until a time-out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from ..worlds.disagreement import PeerError


class DeadlockError(AssertionError):
    """All ranks that have not ended wait for each other; the message says where each one waits.

    >>> from fsm_train.testing import train_ranks
    >>> from fsm_train import Scripted, run, start
    >>> def train(rank, join):
    ...     work = Scripted(batches=2 + rank)
    ...     return run(start(join(work, agreed=False), epochs=1))  # DDP waits in backward all the same
    >>> try:
    ...     train_ranks(2, train).state
    ... except DeadlockError as error:
    ...     print(error)
    the ranks wait for each other: rank 0 has ended; rank 1 waits in backward, with batch 3 of its pass 1
    """


@attrs.frozen
class _Wait:
    channel: str
    given: object
    where: str


class RankThreads:
    """The threads of `ranks` ranks, and the channels on which they meet.

    Attributes:
        ranks: how many there are.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._turns = [threading.Semaphore(0) for _ in range(ranks)]
        self._waiting: dict[int, _Wait] = {}
        self._answers: dict[int, Sequence[Any]] = {}
        self._ended: set[int] = set()
        self._over: Callable[[], Exception] | None = None

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Call the function with the number of each rank; what it returned, or the exception that it raised."""
        ends: list[Any] = [None] * self.ranks

        def body(rank: int) -> None:
            self._turns[rank].acquire()
            try:
                ends[rank] = work(rank)
            except BaseException as error:
                ends[rank] = error
            finally:
                self._ended.add(rank)
                self._judge()
                if (following := self._next(rank)) is not None:
                    self._turns[following].release()

        threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        self._turns[0].release()
        for thread in threads:
            thread.join()
        return ends

    def meet(self, rank: int, channel: str, given: object, where: str) -> Sequence[Any]:
        """Wait until all ranks are on this channel; what each gave, in their order.

        Args:
            rank: which one calls.
            channel: ranks on different channels do not meet.
            given: what the others are given.
            where: what to say of this rank if it waits for ever.

        Raises:
            DeadlockError: no rank can go on.
            PeerError: a rank has failed.
        """
        if self._over is not None:
            raise self._over()
        self._waiting[rank] = _Wait(channel, given, where)
        self._judge()
        following = self._next(rank)
        assert following is not None, "one can go on, at least to raise"
        if following != rank:
            self._turns[following].release()
            self._turns[rank].acquire()
        if rank in self._answers:
            return self._answers.pop(rank)
        assert self._over is not None, "a rank has its turn when it was answered, or all is over"
        raise self._over()

    def fail(self, rank: int, reason: str) -> None:
        """Free the others: what they wait for, or will wait for, raises."""
        if self._over is None:
            self._over = lambda: PeerError.of(rank, reason)
            self._waiting.clear()

    def _judge(self) -> None:
        """Answer those that have met, or end all if they wait for each other."""
        if len(self._waiting) == self.ranks and len({wait.channel for wait in self._waiting.values()}) == 1:
            given = [self._waiting[rank].given for rank in range(self.ranks)]
            self._answers = dict.fromkeys(range(self.ranks), given)
            self._waiting.clear()
        elif self._waiting and len(self._waiting) + len(self._ended) == self.ranks:
            text = "the ranks wait for each other: " + "; ".join(map(self._where, range(self.ranks)))
            self._over = lambda: DeadlockError(text)
            self._waiting.clear()

    def _where(self, rank: int) -> str:
        return f"rank {rank} has ended" if rank in self._ended else f"rank {rank} waits {self._waiting[rank].where}"

    def _next(self, rank: int) -> int | None:
        """The next rank that can go on, this one first; None if all have ended."""
        order = [(rank + i) % self.ranks for i in range(self.ranks)]
        return next((other for other in order if other not in self._waiting and other not in self._ended), None)
