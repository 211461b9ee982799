"""Trainings on several ranks, simulated: what each rank measures, when it is sent a signal, and how all end.

Rule of this file: a rank is simulated around its workload. What ranks agree on is the business of `Agreed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import attrs

from ..core.checks import is_whole
from ..core.phase import Operation
from ..core.state import State
from ..core.table import Outcome
from ..core.workload import Workload
from ..worlds.agreed import Agree, Agreed
from ..worlds.disagreement import PeerError
from ..worlds.proxy import WorkloadProxy
from ..worlds.rows import PLACES, Row
from .differences import differences
from .rank_threads import DeadlockError, RankThreads

T = TypeVar("T")

_OPERATIONS = frozenset(operation.value for operation in Operation)
MOMENTS = _OPERATIONS | {"read", "set_hyper", "carry_out", "exchange"}
"""What a signal can come before or after: each operation, what else a workload is asked for, and each exchange."""


class PerRank(Generic[T]):
    """A setting of `simulate` that is another one on each rank.

    >>> from fsm_train.testing import simulate
    >>> simulate([], ranks=2, batches=PerRank(5, 3)).step  # all stop with the shortest
    3
    """

    def __init__(self, *values: T) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"PerRank({', '.join(map(repr, self.values))})"


def of_rank(rank: int, ranks: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that this rank has.

    Raises:
        ValueError: one is given for another number of ranks.
    """
    for name, value in settings.items():
        if isinstance(value, PerRank) and len(value.values) != ranks:
            raise ValueError(f"{name}={value!r}: give one for each of the {ranks} ranks")
    return {name: value.values[rank] if isinstance(value, PerRank) else value for name, value in settings.items()}


@attrs.frozen
class Moment:
    """A moment of one rank's training, for `interrupt_at` of `simulate` with `ranks`.

    >>> from fsm_train.testing import simulate
    >>> final = simulate([], ranks=2, batches=9, interrupt_at=PerRank(None, Moment("backward", times=3)))
    >>> final.phase.value, final.batch, final.reason
    ('suspended', 4, 'interrupted by SIGTERM')

    Attributes:
        of: an operation, "read", "set_hyper", "carry_out" or "exchange"; None for whichever it is.
        times: at the first time, the second, …
        after: whether the signal comes after it, and not before.

    Raises:
        ValueError: there is no such operation, or times is no whole number from 1.
    """

    of: str | Operation | None = None
    times: int = attrs.field(default=1, kw_only=True)
    after: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.of is not None and self.name not in MOMENTS:
            raise ValueError(f"of={self.of!r}: there are {', '.join(sorted(MOMENTS))}")
        if not is_whole(self.times, 1):
            raise ValueError(f"times={self.times!r}: give a whole number from 1")

    @property
    def name(self) -> str | None:
        """Of what it is, as a text."""
        return self.of.value if isinstance(self.of, Operation) else self.of


class RanksDifferError(AssertionError):
    """The ranks of a simulated training ended in different states; the message has each difference.

    >>> from fsm_train import Phase, Transition, on
    >>> from fsm_train.testing import RankEnds, at
    >>> try:
    ...     RankEnds((at(Phase.DONE, step=3), at(Phase.DONE, step=4))).state
    ... except RanksDifferError as error:
    ...     print(error)
    the ranks ended differently. Rank 1, other than rank 0: step: 3 != 4
    """


@attrs.frozen
class RankEnds:
    """How each rank of a simulated training ended.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> RankEnds((at(Phase.DONE, step=3), at(Phase.DONE, step=3))).state.step
    3

    Attributes:
        ends: the last state of each rank, or what it raised.
        exchanges: in how many exchanges each took part.
    """

    ends: tuple[State | BaseException, ...]
    exchanges: tuple[int, ...] = ()

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What the ranks raised."""
        return tuple(end for end in self.ends if isinstance(end, BaseException))

    @property
    def states(self) -> tuple[State, ...]:
        """The last states of the ranks that raised nothing."""
        return tuple(end for end in self.ends if isinstance(end, State))

    @property
    def state(self) -> State:
        """The last state, which all ranks have.

        Raises:
            RanksDifferError: they do not have the same.
            BaseException: what a rank raised, of several the cause, with a note of how the others ended.
        """
        if self.errors:
            error = min(self.errors, key=_tells_less)
            if len({_in_words(end) for end in self.ends}) > 1:
                for rank, end in enumerate(self.ends):
                    error.add_note(f"Rank {rank} ended with {_in_words(end)}")
            raise error
        first, *others = self.states
        for rank, state in enumerate(others, 1):
            if found := list(differences(first, state)):
                raise RanksDifferError(
                    f"the ranks ended differently. Rank {rank}, other than rank 0: {'; '.join(found)}"
                )
        return first


def _tells_less(error: BaseException) -> int:
    """Of several errors the cause is what neither waits for another rank nor repeats what it raised."""
    return 2 if isinstance(error, PeerError) else int(isinstance(error, DeadlockError))


def _in_words(end: State | BaseException) -> str:
    return repr(end) if isinstance(end, State) else f"{type(end).__name__}: {end}"


class Join(Protocol):
    """What makes a rank's workload one of several; a signal comes at `interrupt_at`."""

    def __call__(self, workload: Workload, *, interrupt_at: Moment | None = None, agreed: bool = True) -> Workload: ...


def train_ranks(
    ranks: int,
    train: Callable[[int, Join], State],
    *,
    agree: Agree = "epoch",
    interrupts_every: int = 1,
    agreed: Callable[..., Agreed] = Agreed,
) -> RankEnds:
    """Train on several simulated ranks, with any workloads, and return how each ended.

    >>> from fsm_train import Scripted, run, start
    >>> def train(rank, join):
    ...     work = join(Scripted(batches=2, valid_loss=1.0 + rank))
    ...     return run(start(work, epochs=1))
    >>> ends = train_ranks(3, train)
    >>> ends.state.metrics["valid_loss"], ends.exchanges
    (2.0, (13, 13, 13))

    Args:
        ranks: how many.
        train: trains one rank: a function of its number and of `join`, through which its workload goes once.
            `join(workload, interrupt_at=Moment(…))` sends this rank a signal; `agreed=False` agrees on nothing.
        agree: as for `Agreed`.
        interrupts_every: as for `Agreed`.
        agreed: `Agreed`, or what to take in its place.

    Raises:
        ValueError: ranks is no whole number from 1.
    """
    if not is_whole(ranks, 1):
        raise ValueError(f"ranks={ranks!r}: give a whole number from 1")
    threads = RankThreads(ranks)
    exchanges = [0] * ranks

    def train_one(rank: int) -> State:
        def join(workload: Workload, *, interrupt_at: Moment | None = None, agreed: bool = True) -> Workload:
            simulated = SimulatedRank(workload, threads, rank, interrupt_at)
            if agreed:
                simulated.signalled = wrap(simulated)
            joined.append(simulated)
            return simulated.signalled

        joined: list[SimulatedRank] = []
        try:
            return train(rank, join)
        finally:
            exchanges[rank] = sum(simulated.exchanges for simulated in joined)

    def wrap(simulated: SimulatedRank) -> Workload:
        made = agreed(
            simulated.as_workload(), _SimulatedExchange(simulated), agree=agree, interrupts_every=interrupts_every
        )
        return made.as_workload()

    ends = threads.run(train_one)
    return RankEnds(tuple(ends), tuple(exchanges))


class SimulatedRank(WorkloadProxy):
    """A workload of one rank: its backward waits for the others, as DDP's does, and a signal comes at a moment.

    Attributes:
        signalled: the workload whose `interrupt` a signal's handler sets.
        exchanges: in how many this rank took part.
        sent: whether the signal came.
    """

    def __init__(self, workload: Workload, threads: RankThreads, rank: int, interrupt_at: Moment | None) -> None:
        super().__init__(workload)
        self.signalled = self.as_workload()
        self.exchanges = 0
        self.sent = False
        self._threads = threads
        self._rank = rank
        self._interrupt_at = interrupt_at
        self._times = {True: 0, False: 0}
        self._passes = self._batches = 0

    def meet(self, channel: str, given: object, where: str) -> Sequence[Any]:
        """Wait for the other ranks on this channel; what each gave."""
        return self._threads.meet(self._rank, channel, given, where)

    def fail(self, reason: str) -> None:
        """Free the other ranks."""
        self._threads.fail(self._rank, reason)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return self.at_moments(name, found) if name in MOMENTS else found

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        """That of the workload, in which there are no moments."""
        return self.wrapped.fused(operations)

    def at_moments(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a moment before and after it."""

        def operation(*given: object) -> Any:
            self._moment(name, after=False)
            done = do(*given)
            if name == "open":
                self._passes, self._batches = self._passes + 1, 0
            elif name == "fetch":
                self._batches += 1
            elif name == "backward":
                where = f"in backward, with batch {self._batches} of its pass {self._passes}"
                self.meet("gradient", None, where)
            self._moment(name, after=True)
            return done

        return operation

    def _moment(self, name: str, *, after: bool) -> None:
        at = self._interrupt_at
        if at is None or at.name not in (None, name):
            return
        self._times[after] += 1
        if at.after is after and at.times == self._times[after]:
            self.sent = True
            self.signalled.interrupt = "SIGTERM"


class _SimulatedExchange:
    """The exchange of a simulated rank, for `Agreed`."""

    def __init__(self, rank: SimulatedRank) -> None:
        self._rank = rank
        self._exchange = rank.at_moments("exchange", self._meet)
        self.fail = rank.fail

    def __call__(self, row: Sequence[float]) -> Sequence[Sequence[float]]:
        rows: Sequence[Sequence[float]] = self._exchange(row)
        return rows

    def _meet(self, row: Sequence[float]) -> Sequence[Any]:
        self._rank.exchanges += 1
        return self._rank.meet("exchange", tuple(row), f"with {PLACES[Row.unpacked(row).topic]}")
