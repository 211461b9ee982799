"""Laws of whole runs: the interpreter is the table, walked; however it is fused, suspended or disturbed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.core.callback import Callback, is_due
from fsm_train.core.errors import CallbackError
from fsm_train.core.facts import measurable
from fsm_train.core.fold import advance, arrived_at, choose
from fsm_train.core.fuse import EVERYWHERE, Path, fused_paths
from fsm_train.core.merge import consult, decide
from fsm_train.core.phase import BATCH_PHASES, CONSULTED, EPOCH_PHASES, FINAL, Flag, Junction, Operation, Phase, Place
from fsm_train.core.runs import extend, ready
from fsm_train.core.state import State
from fsm_train.core.table import ROWS, WITHOUT_TURNS
from fsm_train.core.transition import Transition
from fsm_train.interpreter import iterate, run, start
from property_tests import strategies as our

IN_EPOCHS = tuple(phase for phase in our.BETWEEN if phase in BATCH_PHASES | EPOCH_PHASES)


def last(states: Iterator[State]) -> State:
    *_, final = states
    return final


def told(state: State) -> list[object]:
    """What the workload of this state was told to do."""
    assert isinstance(state.workload, our.Recording)
    return state.workload.told


def forget(state: State, *names: str) -> State:
    """The state without the memories of these callbacks."""
    return attrs.evolve(state, memory={name: m for name, m in state.memory.items() if name not in names})


# ------------------------------------------------------------------------------------ one by one


def fold(state: State, callbacks: Sequence[Callback[Any]]) -> Iterator[State]:
    """What `iterate` does, by the pure functions alone: an edge at a time, and a State at every place."""
    work = state.workload
    assert work is not None
    positions = {callback.name: i for i, callback in enumerate(callbacks)}
    state, place = ready(state), Phase.READY
    state = attrs.evolve(state, memory={**{c.name: c.memory for c in callbacks}, **state.memory})
    while place not in FINAL:
        edge = choose(place, state.flags, state)
        outcomes = [
            getattr(work, operation.value)(*[state] * (operation in work.informed)) for operation in edge.operations
        ]
        place, state = arrived_at(edge, state.resume_at), advance(state, edge, outcomes)
        here = [c for c in callbacks if place in c.at and is_due(c, state.phase, state)]
        if not here or place in FINAL or edge.target is Junction.RESUMED:
            continue
        needs = measurable(frozenset().union(*(c.needs for c in here)), state.phase, work.sensors)
        state = attrs.evolve(state, facts={"batch_size": state.fetched, **work.read(needs, state)})
        state, decision = decide(state, consult(here, state), positions)
        if decision.hyper:
            work.set_hyper({name: state.hyper[name] for name in decision.hyper})
        for command in decision.commands:
            work.carry_out(command, state)
        yield state
    yield attrs.evolve(state, workload=work)


@given(our.trainings())
def test_interpreter_is_the_fold_of_the_table(training: our.Training) -> None:
    """Every state that is yielded is the one that choosing and crossing edges one by one arrives at."""
    begun, folded = training.start(), training.start()
    assert list(iterate(begun, training.callbacks)) == list(fold(folded, training.callbacks))
    assert told(begun) == told(folded)


@given(our.trainings())
def test_every_training_ends(training: our.Training) -> None:
    """Whatever callbacks ask for, a training with a number of epochs ends, and within it."""
    final = run(training.start(), training.callbacks)
    assert final.phase is Phase.DONE
    assert final.epoch <= training.plan.epochs
    assert final.pending == 0
    assert len(final.history) == final.epoch


# ---------------------------------------------------------------------------------------- fusing


@given(our.trainings(), st.sets(st.sampled_from(CONSULTED)))
def test_watching_changes_nothing(training: our.Training, phases: set[Phase]) -> None:
    """One more who watches some phases and says nothing: the same operations, the same final state."""
    silent = Callback("silent", tuple(phases) or CONSULTED, lambda state, memory: None)
    fused, unfused = training.start(), training.start()
    finals = run(fused, training.callbacks), run(unfused, (*training.callbacks, silent))
    assert finals[0] == forget(finals[1], "silent")
    assert told(fused) == told(unfused)


@given(
    st.sampled_from([place for place in ROWS if ROWS[place]]),
    our.flags(tuple(Flag)),
    st.sets(st.sampled_from(CONSULTED)),
)
def test_way_is_its_edges_one_by_one(place: Place, flags: Flag, watched: set[Place]) -> None:
    """A fused way does what its edges do, each after the other, and nothing is watched on it but its end."""
    for way in fused_paths(place, flags, watched):
        moves, up = [], flags
        for edge in way.edges:
            (step,) = (single for single in fused_paths(edge.source, up, EVERYWHERE) if single.edges == (edge,))
            moves += step.moves
            up = step.flags
        assert (way.moves, way.flags, way.target) == (tuple(moves), up, way.edges[-1].target)
        assert not watched.intersection(edge.target for edge in way.edges[:-1])


def test_whole_step_is_one_way() -> None:
    """Where nobody looks inside a step, it is one way from its batch to the end of it; so is the leftover step."""
    step = [Operation.FORWARD, Operation.LOSS, Operation.BACKWARD, Operation.UNSCALE, Operation.STEP, Operation.ZERO]
    for watched in ({Phase.BATCH_END}, {Phase.BATCH_BEGIN}, NOWHERE):
        (way,) = fused_paths(Phase.BATCH_BEGIN, Flag.NONE, watched)
        assert [operation for operation, _ in way.moves if operation] == step
        assert way.target is Phase.BATCH_END
        leftover, *_ = fused_paths(Junction.BATCHES_OVER, Flag.NONE, watched, WITHOUT_TURNS)
        assert [operation for operation, _ in leftover.moves if operation] == [*step[3:]]


NOWHERE = frozenset[Place]()


@given(our.flags(tuple(Flag)), st.data())
def test_composing_ways_is_associative(flags: Flag, data: st.DataObject) -> None:
    """It does not matter which two of three paths are joined first."""
    a, b, c = data.draw(st.sampled_from(_successions(flags)))
    assert a.then(b).then(c) == a.then(b.then(c))


def _successions(flags: Flag) -> list[tuple[Path, Path, Path]]:
    """Three paths, each from where the one before it ends, the second and third without predicates."""

    def free(way: Path) -> list[Path]:
        return [onward for onward in fused_paths(way.target, way.flags, EVERYWHERE) if not onward.predicates]

    first = [way for place in ROWS for way in fused_paths(place, flags, EVERYWHERE)]
    return [(a, b, c) for a in first for b in free(a) for c in free(b)]


# -------------------------------------------------------------------------- suspending and going on


def resumed_until_done(state: State, callbacks: Sequence[Callback[Any]], interruptions: Sequence[int]) -> State:
    """Run it, interrupted after so many more operations each time, and go on until it is done."""
    ahead = [*interruptions, -1]
    while state.phase is not Phase.DONE:
        work = state.workload
        assert isinstance(work, our.Recording)
        work.interrupt, work.interrupt_after = None, len(work.done) + ahead.pop(0)
        state = last(iterate(state, callbacks))
    return state


def operations(told: Sequence[object]) -> list[object]:
    """What was done for the training itself: without what each call begins and ends with, and what was abandoned."""
    done: list[object] = []
    for what in told:
        if what is Operation.ABANDON:
            while done.pop() is not Operation.OPEN_VALID:
                pass
        elif what not in (Operation.PREPARE, Operation.REPOSITION, Operation.FINISH):
            done.append(what)
    return done


@given(our.trainings(our.BETWEEN), st.lists(st.integers(1, 20), min_size=1, max_size=3))
def test_suspended_run_is_the_same_run(training: our.Training, interruptions: list[int]) -> None:
    """A run that is interrupted anywhere, any number of times, does the same and ends the same."""
    undisturbed, disturbed = training.start(), training.start()
    final = run(undisturbed, training.callbacks)
    after = resumed_until_done(disturbed, training.callbacks, interruptions)
    assert attrs.evolve(after, reason="") == attrs.evolve(final, reason="")
    assert operations(told(disturbed)) == operations(told(undisturbed))


@given(our.trainings(our.BETWEEN), our.moments(IN_EPOCHS))
def test_callback_that_suspends_is_like_an_interrupt(training: our.Training, when: our.Moment) -> None:
    """SUSPEND raised by a callback ends the call, and without it the next one goes on as if nothing had been."""
    suspending = Callback(
        "suspending",
        when[0],
        lambda state, memory: Transition(flags=Flag.SUSPEND) if our.moment(state) == when else None,
    )
    suspended = run(training.start(), (*training.callbacks, suspending))
    after = run(suspended, training.callbacks) if suspended.phase is Phase.SUSPENDED else suspended
    final = run(training.start(), training.callbacks)
    assert attrs.evolve(forget(after, "suspending"), reason="") == attrs.evolve(final, reason="")


@given(our.worlds(), st.integers(0, 2), st.integers(1, 2))
def test_extended_training_is_the_longer_one(world: our.World, epochs: int, more: int) -> None:
    """Training for some epochs, and then for more, is training for their sum."""
    short = run(start(world.workload(), epochs=epochs))
    assert run(extend(short, epochs=more)) == run(start(world.workload(), epochs=epochs + more))


# ------------------------------------------------------------------------------------- every


@given(our.trainings(), st.integers(1, 4))
def test_every_consults_at_multiples(training: our.Training, every: int) -> None:
    """Who is consulted `every` so often sees what one who always is sees at multiples, and is always asked outside."""

    def remember(state: State, memory: tuple[tuple[str, int], ...]) -> Transition:
        return Transition(memory=(*memory, (state.phase.value, our.moment(state)[1])))

    def seen(every: int) -> tuple[tuple[str, int], ...]:
        memory = Callback("memory", CONSULTED, remember, memory=(), every=every)
        return run(training.start(), (*training.callbacks, memory)).memory["memory"]

    periodic = {phase.value for phase in EPOCH_PHASES | BATCH_PHASES}
    assert seen(every) == tuple((phase, n) for phase, n in seen(1) if phase not in periodic or n % every == 0)


# ---------------------------------------------------------------------------------- when it breaks


@attrs.define
class Witness:
    """A sink that notes what it is told."""

    at = (Phase.TEARDOWN, *FINAL)
    needs = frozenset()
    interval = 0.0
    opened: int = 0
    closed: int = 0
    seen: list[Phase] = attrs.field(factory=list)

    def open(self, state: State, callbacks: object) -> None:
        self.opened += 1

    def see(self, state: State, answers: object) -> None:
        self.seen.append(state.phase)

    def close(self) -> None:
        self.closed += 1


@given(our.trainings(), our.moments())
def test_callback_that_raises_ends_in_good_order(training: our.Training, when: our.Moment) -> None:
    """Its error says where it was; TEARDOWN is consulted once, finish is done last, and the sinks are closed."""
    met: list[State] = []
    torn: list[State] = []

    def breaks(state: State, memory: object) -> None:
        if our.moment(state) == when and not met:
            met.append(state)
            raise RuntimeError("broken")

    breaking = Callback("breaking", when[0], breaks)
    undo = Callback("undo", Phase.TEARDOWN, lambda state, memory: torn.append(state))
    begun, witness = training.start(), Witness()
    try:
        assert run(begun, (*training.callbacks, breaking, undo), sinks=[witness]).phase is Phase.DONE
        return  # it never came there
    except CallbackError as raised:
        (at,), error = met, raised
    assert isinstance(error.__cause__, RuntimeError)
    assert (error.callback, error.phase) == ("breaking", at.phase)
    assert (error.epoch, error.batch, error.iteration, error.step) == (at.epoch, at.batch, at.iteration, at.step)
    if when[0] is not Phase.TEARDOWN:
        assert [state.error for state in torn] == [f"CallbackError: {error}"]
    assert told(begun)[-1] is Operation.FINISH
    assert told(begun).count(Operation.FINISH) == 1
    assert (witness.opened, witness.closed, witness.seen[-1]) == (1, 1, Phase.FAILED)


@given(our.trainings(), st.integers(0, 30))
def test_operation_that_raises_ends_in_good_order(training: our.Training, after: int) -> None:
    """The workload's error comes out as it is, with a note; TEARDOWN is consulted once, also if it was of finish."""
    torn: list[State] = []
    undo = Callback("undo", Phase.TEARDOWN, lambda state, memory: torn.append(state))
    begun, witness = training.start(), Witness()
    assert isinstance(begun.workload, our.Recording)
    begun.workload.break_after = after
    try:
        assert run(begun, (*training.callbacks, undo), sinks=[witness]).phase is Phase.DONE
        return  # it was over before
    except OSError as raised:
        error = raised
    assert f"by {begun.workload.done[after].value}" in error.__notes__[0]
    assert len(torn) == 1
    assert told(begun)[-1] is Operation.FINISH
    assert told(begun).count(Operation.FINISH) == 1
    assert witness.seen == [Phase.TEARDOWN, Phase.FAILED]
    assert witness.closed == 1
