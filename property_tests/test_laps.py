"""Laws of laps: whole steps in a row do what steps one by one do, wherever they are interrupted or fail."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import Scripted, State, Supervised, cursor, extend, iterate, on, run, start
from fsm_train.core.callback import Callback
from fsm_train.core.laps import Lap, take_laps
from fsm_train.core.phase import BATCH_PHASES, CONSULTED, Operation, Phase
from fsm_train.worlds.proxy import WorkloadProxy
from property_tests import strategies as our
from property_tests.test_runs import last
from tests.diabetes_training import batches, net, sgd
from tests.models import same_weights

BETWEEN_BATCHES = tuple(phase for phase in CONSULTED if phase not in BATCH_PHASES)
STEP = (
    *(Operation.FORWARD, Operation.LOSS, Operation.BACKWARD, Operation.UNSCALE),
    *(Operation.STEP, Operation.ZERO),
)


class InARow(our.Recording):
    """Takes whole steps, and several in a row if `laps` is true."""

    def __init__(self, sizes: Sequence[float], stepped: Sequence[bool], *, in_a_row: bool) -> None:
        super().__init__(batches=4, loss=0.5)
        self.sizes, self.stepped, self.in_a_row = sizes, stepped, in_a_row
        self.began = 0

    def operate(self, operation: Operation, *given: State) -> object:
        outcome = super().operate(operation, *given)
        if operation is Operation.FETCH and outcome is not None:
            self._size = self.sizes[self.done.count(Operation.FETCH) % len(self.sizes)]
            return self._size
        if operation is Operation.STEP:
            return self.stepped[self.done.count(Operation.STEP) % len(self.stepped)]
        return outcome

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], object] | None:
        return self.whole_step if operations == STEP else None

    def whole_step(self) -> object:
        outcome: object = None
        for self.doing in STEP:
            answer = getattr(self, self.doing.value)()
            outcome = answer if self.doing is Operation.STEP else outcome
        self.doing = None
        return outcome

    def laps(self, operations: tuple[Operation, ...]) -> Callable[[Lap], None] | None:
        if not self.in_a_row or operations != STEP:
            return None

        def counted(lap: Lap) -> None:
            self.began += 1
            take_laps(lap, self.fetch, self.whole_step, lambda: self.interrupt is not None)

        return counted


@attrs.frozen
class World:
    """How the batches weigh, which steps are held back, and when somebody interrupts or something breaks."""

    sizes: tuple[float, ...]
    stepped: tuple[bool, ...]
    interrupt_after: int
    break_after: int
    max_steps: int | None

    def trained(self, callbacks: Sequence[Callback[Any]], *, in_a_row: bool) -> tuple[object, ...]:
        """All that can be seen of this training, and of the one after it if it was suspended."""
        work = InARow(self.sizes, self.stepped, in_a_row=in_a_row)
        work.interrupt_after, work.break_after = self.interrupt_after, self.break_after
        failures: list[object] = []

        @on(Phase.TEARDOWN)
        def torn_down(state: State) -> None:
            if (failure := state.failure) is not None:
                seen = (failure.phase, failure.doing, failure.deciding, failure.pending, failure.state)
                failures.append((*seen, failure.boundary and attrs.astuple(failure.boundary, recurse=False)))

        ends: list[object] = []
        state = start(work, epochs=3, max_steps=self.max_steps)
        try:
            state = last(iterate(state, [*callbacks, torn_down]))  # a signal is no one's but this call's
            ends.append(state)
            if state.phase is Phase.SUSPENDED:
                ends.append(last(iterate(state, [*callbacks, torn_down])))
        except OSError as error:
            ends.append(error.__notes__)
        return ends, failures, work.told


worlds = st.builds(
    World,
    sizes=st.lists(st.sampled_from([2, 1, 0.1, 0.7, 0]), min_size=1, max_size=4).map(tuple),
    stepped=st.lists(st.booleans(), min_size=1, max_size=3).map(tuple),
    interrupt_after=st.integers(-1, 60),
    break_after=st.integers(-1, 60),
    max_steps=st.sampled_from([None, None, 1, 3, 5]),
)


@given(worlds, st.data())
def test_steps_in_a_row_are_steps_one_by_one(world: World, data: st.DataObject) -> None:
    """The same operations, last states, errors and failures, whatever callbacks ask for between the epochs."""
    named = our.NAMES[: data.draw(st.integers(0, 2))]
    callbacks = [data.draw(our.callbacks(name, BETWEEN_BATCHES, has_valid=False)) for name in named]
    callbacks = [attrs.evolve(c, needs=frozenset(), decide=_without_hyper(c.decide)) for c in callbacks]
    assert world.trained(callbacks, in_a_row=True) == world.trained(callbacks, in_a_row=False)


@given(worlds, st.sampled_from([2, 3]), st.data())
def test_steps_in_a_row_leave_out_nobody_who_is_due(world: World, every: int, data: st.DataObject) -> None:
    """The same with callbacks that are consulted now and then, at any phase: laps end before one is due."""
    drawn = data.draw(our.callbacks("a", has_valid=False))
    callback = attrs.evolve(drawn, needs=frozenset(), decide=_without_hyper(drawn.decide), every=every)
    assert world.trained([callback], in_a_row=True) == world.trained([callback], in_a_row=False)


def _without_hyper(decide: Callable[..., Any]) -> Callable[..., Any]:
    """The world of this file has no hyper-parameters but the rate."""

    @functools.wraps(decide)
    def deciding(state: State, memory: object) -> Any:
        answer = decide(state, memory)
        return answer and attrs.evolve(answer, hyper={})

    return deciding


def test_what_fails_after_a_resume_says_where() -> None:
    """Laps begin right where a training resumes, and their last phase is the end of a batch."""
    world = World((2,), (False,), 1, 20, None)
    assert world.trained([], in_a_row=True) == world.trained([], in_a_row=False)


PLAIN = World((1, 0.3), (True, False), -1, -1, None)


def begun(callbacks: Sequence[Callback[Any]] = (), *, epochs: int = 3) -> int:
    """How often laps were begun in three epochs of four batches."""
    work = InARow((1,), (True,), in_a_row=True)
    run(start(work, epochs=epochs), callbacks)
    return work.began


def test_an_epoch_is_one_batch_and_then_laps() -> None:
    """They begin once an epoch where nobody looks at a batch, and never where somebody does."""
    assert begun() == 3
    assert begun([on(Phase.EPOCH_END, name="a")(lambda state: None)]) == 3
    for phase in (Phase.BATCH_BEGIN, Phase.STEP_BEGIN, Phase.BATCH_END):
        assert begun([on(phase, name="a")(lambda state: None)]) == 0


def test_who_is_not_due_stops_no_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred batches with somebody at each of their phases, every fiftieth time: looked at at two of them."""
    looks = []
    look = cursor.Cursor.look
    monkeypatch.setattr(cursor.Cursor, "look", lambda self: (looks.append(self.place), look(self))[1])
    silent = on(*BATCH_PHASES, name="silent", every=50)(lambda state: None)

    run(start(Scripted(batches=100), epochs=1), [silent])

    assert len(looks) == 2 * 7


@pytest.mark.parametrize("phases", [(Phase.BATCH_END,), (Phase.BATCH_BEGIN, Phase.BATCH_END)])
@pytest.mark.parametrize("every", [2, 3, 4, 5])
def test_laps_end_where_somebody_is_due(every: int, phases: Sequence[Phase]) -> None:
    """Also where each second batch is looked at: the one between is taken so."""
    ends: list[int] = []
    noting = on(*phases, name="noting", every=every)(
        lambda state: ends.append(state.iteration) if state.phase is Phase.BATCH_END else None
    )
    assert begun([noting]) >= 3
    assert ends == [n for n in range(1, 13) if n % every == 0]


def test_who_is_due_is_not_asked_again_where_no_batch_is_taken() -> None:
    """A signal comes right before a batch in a row is fetched, at the end of one where somebody was asked already."""
    asked: list[int] = []

    class Interrupted(InARow):
        def fetch(self, state: State | None = None) -> float | None:
            assert len(asked) < 1
            return super().fetch(state)

        def laps(self, operations: tuple[Operation, ...]) -> Callable[[Lap], None] | None:
            take = super().laps(operations)

            def interrupted(lap: Lap) -> None:
                if asked:
                    self.interrupt = "SIGTERM"
                assert take is not None
                take(lap)

            return take and interrupted

    noting = on(Phase.BATCH_END, name="noting", every=2)(lambda state: asked.append(state.iteration))
    state = start(Interrupted((1,), (True,), in_a_row=True), epochs=1)
    assert last(iterate(state, [noting])).phase is Phase.SUSPENDED
    assert asked == [2]


def test_workload_whose_step_is_given_the_state_takes_no_laps() -> None:
    """There is no state inside of laps."""

    class Informed(InARow):
        @property
        def informed(self) -> Any:
            return super().informed | {Operation.STEP}

    work = Informed((1,), (True,), in_a_row=True)
    run(start(work, epochs=1))
    assert work.began == 0


class Fetching(WorkloadProxy):
    """Watches what is fetched."""

    def fetch(self) -> float | None:
        return self.wrapped.fetch()


class Hearing(WorkloadProxy):
    """Has interrupts of its own."""

    interrupt = None  # type: ignore[assignment]


def supervised(kind: type[Supervised] = Supervised) -> Supervised:
    torch.manual_seed(0)
    model = net()
    return kind(model, sgd(model), torch.nn.MSELoss(), batches(8, 8, 5, 6))


class Stepping(Supervised):
    """Steps in its own way."""

    def step(self) -> bool:
        return super().step()


class Fetched(Supervised):
    """Fetches in its own way."""

    def fetch(self) -> float | None:
        return super().fetch()


def test_who_does_an_operation_in_its_own_way_takes_no_laps() -> None:
    """A proxy or a subclass that watches an operation is asked for each; one that does not is none the slower."""
    work: Any = supervised()
    assert work.laps(STEP) is not None
    assert WorkloadProxy(work).laps(STEP) is not None
    assert Fetching(work).laps(STEP) is Hearing(work).laps(STEP) is None
    assert supervised(Stepping).laps(STEP) is supervised(Fetched).laps(STEP) is None
    assert work.laps(STEP[:2]) is Scripted().laps(STEP) is None


@given(st.sampled_from([None, 2, 5]), st.integers(1, 2))
def test_real_training_in_laps_has_the_same_bits(max_steps: int | None, more: int) -> None:
    """With laps, without, and with somebody who looks at each batch; extended afterwards too."""

    class OneByOne(Supervised):
        def laps(self, operations: tuple[Operation, ...]) -> None:
            return None

    look = on(Phase.BATCH_END, name="look")(lambda state: None)
    found = []
    for work, callbacks in ((supervised(), []), (supervised(OneByOne), []), (supervised(), [look])):
        final = run(start(work, epochs=2, max_steps=max_steps, seed=1), callbacks)
        final = run(extend(final, epochs=more, max_steps=None if max_steps is None else 4 * more), callbacks)
        found.append((attrs.evolve(final, memory={}), work.model))
    for final, model in found[1:]:
        assert final == found[0][0]
        assert same_weights(model, found[0][1])


def test_laps_that_are_not_counted_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last state shows it."""
    monkeypatch.setattr(cursor, "count_laps", lambda at, lap: None)
    assert PLAIN.trained([], in_a_row=True) != PLAIN.trained([], in_a_row=False)
