"""Several ranks as one training: whatever each measures, and whenever one is sent a signal, all end alike.

Rule of this file: what all ranks have in common is the callbacks, the plan, and whether a step is held back, which
follows from the common gradient.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from fsm_train import Callback, Command, Phase, Scripted, State, Transition, iterate, on, start
from fsm_train.callbacks import checkpoint
from fsm_train.commands import WeighLoss
from fsm_train.core.reductions import Sensor
from fsm_train.core.workload import Workload
from fsm_train.testing import DeadlockError, Moment, RankEnds, train_ranks
from fsm_train.testing.ranks import MOMENTS, Join
from fsm_train.worlds.agreed import Agreed
from fsm_train.worlds.disagreement import DisagreementError, PeerError
from fsm_train.worlds.passes import Pass
from fsm_train.worlds.proxy import WorkloadProxy
from fsm_train.worlds.rows import Topic
from tests.testing.library_examples import EXAMPLES

CALLS = 4
"""Of run: a training may be suspended by a signal, and by callbacks."""


@on(Phase.TEARDOWN, needs={"elapsed"}, memory=0.0)
def last_words(state: State, _: float) -> Transition:
    """Measures something at the very end."""
    return Transition(memory=state.facts["elapsed"])


LIBRARY: Mapping[str, Callable[[], Callback[Any]]] = {
    **{f"{name} {i}": make for name, makes in EXAMPLES.items() for i, make in enumerate(makes)},
    "checkpoint on failure": lambda: checkpoint("failures", on_failure=True, name="checkpoint on failure"),
    "last words": lambda: last_words,
}
NUMBERS = st.sampled_from([0.5, 1.0, 2.0, math.nan, math.inf])
OURS = (DisagreementError, PeerError, DeadlockError)


@attrs.frozen
class Share:
    """What one rank has and measures. What is too short begins again."""

    batches: int | tuple[int, ...] = 2  # of each epoch; a number is known before
    sizes: int | tuple[int, ...] = 2
    losses: tuple[float, ...] = (1.0,)
    valid: tuple[float, ...] = (1.0,)
    valid_batches: int | tuple[int, ...] = 1
    seconds: float = 1.0
    interrupt_at: Moment | None = None


@attrs.frozen
class World:
    shares: tuple[Share, ...]
    epochs: int = 1
    callbacks: tuple[str, ...] = ()
    stepped: tuple[bool, ...] = (True,)  # by the common gradient, so the same on all ranks
    interrupts_every: int = 1


class Measured(Scripted):
    """A rank's workload that notes what goes into backward: the loss, what it counts, and the weight of the rank.

    Attributes:
        gradients: of each backward (loss, what it counts, weight).
    """

    def __init__(self, share: Share, stepped: tuple[bool, ...]) -> None:
        super().__init__(
            batches=share.batches if isinstance(share.batches, int) else by_epoch(share.batches),
            batch_size=share.sizes if isinstance(share.sizes, int) else by_batch(share.sizes),
            loss=by_batch(share.losses),
            valid_batches=share.valid_batches
            if isinstance(share.valid_batches, int)
            else by_epoch(share.valid_batches),
            valid_loss=by_epoch(share.valid),
            valid_accuracy=by_epoch(share.valid[::-1]),
            stepped=by_batch(stepped),
            grad_norm=by_batch(share.losses[::-1]),
            elapsed=lambda state: share.seconds * state.iteration,
            tokens=Sensor(lambda state: share.seconds * (1 + state.batch % 2), reduction="sum"),
            hyper={"lr": 0.1, "momentum": 0.9},
        )
        self.gradients: list[tuple[float, float, float]] = []
        self._rank_weight = 1.0
        self._counts = 0.0

    def fetch(self, state: State | None = None) -> float | None:
        size = super().fetch(state)
        self._counts = size or 0.0
        return size

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        found = super().read(names, state)
        self._tokens = found.get("tokens", 0.0)
        return found

    def carry_out(self, command: Command, state: State) -> None:
        super().carry_out(command, state)
        if isinstance(command, WeighLoss) and command.by == "tokens":
            self._counts = self._tokens

    def set_rank_weight(self, weight: float) -> None:
        self._rank_weight = weight

    def backward(self, state: State | None = None) -> None:
        super().backward(state)
        assert self._loss is not None
        self.gradients.append((self._loss, self._counts, self._rank_weight))


def by_batch(values: tuple[float, ...]) -> Callable[[State], float]:
    return lambda state: values[state.iteration % len(values)]


def by_epoch(values: tuple[float, ...]) -> Callable[[State], float]:
    return lambda state: values[state.epoch % len(values)]


def a_few(values: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, min_size=1, max_size=most).map(tuple)


def shares(signals: st.SearchStrategy[Moment | None]) -> st.SearchStrategy[Share]:
    return st.builds(
        Share,
        batches=st.just(2) | st.integers(1, 3) | a_few(st.integers(1, 3)),
        sizes=st.just(2) | st.integers(1, 3) | a_few(st.integers(0, 3)),
        losses=a_few(NUMBERS),
        valid=a_few(NUMBERS),
        valid_batches=st.just(1) | st.integers(1, 2) | a_few(st.integers(0, 2)),
        seconds=st.sampled_from([1.0, 3.0]),
        interrupt_at=signals,
    )


@pytest.fixture(autouse=True, scope="module")
def _without_warnings() -> Iterator[None]:
    """Of schedules that do not fit, and the like: drawn callbacks have many."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


ANY_MOMENT = st.builds(Moment, times=st.integers(1, 120), after=st.booleans())


@st.composite
def worlds(draw: st.DrawFn, names: tuple[str, ...] = tuple(LIBRARY)) -> World:
    """Two to four ranks, each with a share of its own; each may be sent a signal before or after anything."""
    ranks = draw(st.integers(2, 4))
    share = shares(st.none() | ANY_MOMENT)
    return World(
        shares=tuple(draw(st.lists(share, min_size=ranks, max_size=ranks))),
        epochs=draw(st.integers(1, 3)),
        callbacks=tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=4))),
        stepped=draw(a_few(st.booleans(), 2)),
        interrupts_every=draw(st.integers(1, 3)),
    )


@attrs.define
class Trained:
    """How the ranks of a world ended, and their workloads."""

    ends: RankEnds
    works: dict[int, Measured] = attrs.Factory(dict)
    calls: dict[int, int] = attrs.Factory(dict)


def trained(world: World, agreed: Callable[..., Agreed] = Agreed) -> Trained:
    """Train until the end, through suspensions."""
    works: dict[int, Measured] = {}
    calls: dict[int, int] = {}

    def train(rank: int, join: Join) -> State:
        share = world.shares[rank]
        works[rank] = Measured(share, world.stepped)
        work = join(works[rank], interrupt_at=share.interrupt_at)
        callbacks = [LIBRARY[name]() for name in world.callbacks]
        state = start(work, epochs=world.epochs, seed=0)
        calls[rank] = 0
        while state.phase is not Phase.DONE and calls[rank] < CALLS:
            (state,) = deque(iterate(state, callbacks), maxlen=1)
            calls[rank] += 1
        return state

    ends = train_ranks(len(world.shares), train, interrupts_every=world.interrupts_every, agreed=agreed)
    return Trained(ends, works, calls)


def all_end_alike(world: World, agreed: Callable[..., Agreed] = Agreed) -> Trained:
    """Raise AssertionError unless they do: in one state, or with one error of a callback or of the data."""
    done = trained(world, agreed)
    errors = done.ends.errors
    if errors:
        assert not any(isinstance(error, OURS) for error in errors), errors
        assert len(errors) == len(world.shares), errors
        assert len({f"{type(error).__name__}: {error}" for error in errors}) == 1, errors
    else:
        assert done.ends.state.phase in (Phase.DONE, Phase.SUSPENDED)
        assert len(set(done.calls.values())) == 1
    assert len(set(done.ends.exchanges)) == 1
    gradient_is_that_of_the_union(done)
    return done


def gradient_is_that_of_the_union(done: Trained) -> None:
    """The mean over ranks of weighted losses is the mean over all their samples, for each backward of them all."""
    of_ranks = [work.gradients for work in done.works.values()]
    if not done.ends.errors:
        assert len({len(gradients) for gradients in of_ranks}) == 1
    for of_each in zip(*of_ranks, strict=False):
        counted = [(loss, size) for loss, size, _ in of_each if size]
        union = sum(loss * size for loss, size in counted) / sum(size for _, size in counted)
        together = sum(loss * weight for loss, _, weight in of_each if weight) / len(of_each)
        assert together == pytest.approx(union, nan_ok=True)


@given(worlds())
def test_all_ranks_end_alike(world: World) -> None:
    """Losses, sizes, batches and validations are other ones on each rank, and so are signals."""
    all_end_alike(world)


@given(worlds(), st.sampled_from([2, 3, 4]))
def test_ranks_that_are_alike_are_one(world: World, ranks: int) -> None:
    """What all ranks measure stays what it is, to the last bit; only samples add up."""
    share = attrs.evolve(world.shares[0], interrupt_at=None)
    one = trained(attrs.evolve(world, shares=(share,)))
    several = trained(attrs.evolve(world, shares=(share,) * ranks))

    if one.ends.errors:
        assert {str(error) for error in several.ends.errors} == {str(one.ends.errors[0])}
    elif "accumulate 1" not in world.callbacks:  # which compares sums of tokens
        a, b = one.ends.state, several.ends.state
        assert (a.epoch, a.step, a.metrics, a.hyper, a.reason) == (b.epoch, b.step, b.metrics, b.hyper, b.reason) or (
            repr(a.metrics) == repr(b.metrics)
        )
        assert b.samples == ranks * a.samples


class Breaking(WorkloadProxy):
    """Raises before the operation of this number, counted from 0, or whatever else it is asked to do."""

    def __init__(self, workload: Workload, after: int) -> None:
        super().__init__(workload)
        self._left = after

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return self._breaking(found) if name in MOMENTS else found

    def _breaking(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*given: object) -> Any:
            self._left -= 1
            if self._left == -1:
                raise OSError("broken")
            return do(*given)

        return operation


def others_end_with_it(world: World, breaking: int, after: int, agreed: Callable[..., Agreed] = Agreed) -> None:
    """Raise AssertionError unless all ranks end with what one raises, and say whose it is."""

    def train(rank: int, join: Join) -> State:
        work: Any = Measured(world.shares[rank], world.stepped)
        if rank == breaking:
            work = Breaking(work, after).as_workload()
        work = join(work, interrupt_at=world.shares[rank].interrupt_at)
        (state,) = deque(
            iterate(start(work, epochs=world.epochs), [LIBRARY[name]() for name in world.callbacks]), maxlen=1
        )
        return state

    ends = train_ranks(len(world.shares), train, interrupts_every=world.interrupts_every, agreed=agreed).ends
    assert not any(isinstance(end, (DeadlockError, DisagreementError)) for end in ends), ends
    if isinstance(ends[breaking], OSError):
        causes = [
            f"rank {rank} failed, and this rank ended with it: {type(end).__name__}: {end}"
            for rank, end in enumerate(ends)
            if not isinstance(end, PeerError)
        ]
        # Another rank may fail at the same time, for a reason of its own.
        assert not any(isinstance(end, State) for end in ends), ends
        assert all(str(end) in causes for end in ends if isinstance(end, PeerError)), ends
    else:
        assert not any(isinstance(end, OURS) for end in ends), ends


@given(worlds(), st.integers(0, 3), st.integers(0, 60))
def test_what_one_rank_raises_ends_the_others(world: World, breaking: int, after: int) -> None:
    """Within any operation, measurement or command: none of them waits for it for ever."""
    others_end_with_it(world, breaking % len(world.shares), after)


# ------------------------------------------------------------------------------------ the law has teeth


class OwnFacts(Agreed):
    def read(self, names: Any, state: State) -> Mapping[str, float]:
        return self.wrapped.read(names, state)


class OwnMetrics(Agreed):
    def measure_valid(self, state: State) -> Mapping[str, float]:
        return self.wrapped.measure_valid(state)


class OwnTrainingMetrics(Agreed):
    def measure(self, state: State) -> Mapping[str, float]:
        return self.wrapped.measure(state)


class OwnEnd(Agreed):
    def fetch(self, *state: State) -> float | None:
        own = self.wrapped.fetch(*(state if self.wrapped.informed else ()))
        self._train.take(own)
        return own


class MeanOfRanks(Agreed):
    def fetch(self, *state: State) -> float | None:
        fetched = super().fetch(*state)
        self.wrapped.set_rank_weight(1.0)
        return fetched


class OwnSignal(Agreed):
    @property
    def interrupt(self) -> str | None:
        return self.wrapped.interrupt

    @interrupt.setter
    def interrupt(self, name: str | None) -> None:
        self.wrapped.interrupt = name


class SignalActsBeforeItIsAgreedOn(Agreed):
    @property
    def interrupt(self) -> str | None:
        return super().interrupt

    @interrupt.setter
    def interrupt(self, name: str | None) -> None:
        self.wrapped.interrupt = self._agreed_signal = name


class EvennessUnasked(Agreed):
    unasked = Topic.FETCH

    def _sizes(self, topic: Topic, now: Pass, own: float | None) -> list[float | None]:
        sizes = super()._sizes
        return [own] * self._meeting.ranks if topic is self.unasked else sizes(topic, now, own)


class EvennessOfValidationsUnasked(EvennessUnasked):
    unasked = Topic.FETCH_VALID


MUTANTS = (
    OwnFacts,
    OwnMetrics,
    OwnTrainingMetrics,
    OwnEnd,
    MeanOfRanks,
    OwnSignal,
    SignalActsBeforeItIsAgreedOn,
    EvennessUnasked,
    EvennessOfValidationsUnasked,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_found(mutant: type[Agreed]) -> None:
    """Each keeps one thing to its own rank, and is found in a few trainings."""
    tried = 0

    @settings(
        max_examples=200,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Stage.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds())
    def law(world: World) -> None:
        nonlocal tried
        tried += 1
        all_end_alike(world, mutant)

    with pytest.raises((AssertionError, BaseExceptionGroup)):
        law()
    assert tried <= 60


class TellsNothing(Agreed):
    def _failed(self, state: State) -> bool:
        return bool(state.error)


class MeasuresAsEverWhenItFails(Agreed):
    def _failed(self, state: State) -> bool:
        return False


@pytest.mark.parametrize("mutant", [TellsNothing, MeasuresAsEverWhenItFails], ids=lambda mutant: mutant.__name__)
def test_ranks_that_are_not_told_wait(mutant: type[Agreed]) -> None:
    """The third rank raises in its fifth operation, and the others meet what it measures last, or nothing."""
    world = World(shares=(Share(),) * 3, callbacks=("last words",))

    others_end_with_it(world, breaking=2, after=5)
    with pytest.raises(AssertionError):
        others_end_with_it(world, breaking=2, after=5, agreed=mutant)
