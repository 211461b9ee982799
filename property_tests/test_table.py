"""Laws of the table: walked as a whole, with every flag at every phase.

Each law is a function of what was explored, so that a broken machine can be put to it.
"""

from __future__ import annotations

import functools
import graphlib
import os
from collections.abc import Iterable, Iterator

import pytest

from fsm_train.core.fold import choose
from fsm_train.core.phase import BATCH_FLAGS, CONSULTED, FINAL, VALID_FLAGS, Flag, Junction, Operation, Phase, Place
from fsm_train.core.table import READABLE, SETTLED, TABLE, WITHOUT_TURNS, Edge, batches_over
from property_tests.exploration import BRACKETS, CLOSES, Bounds, Exploration, Machine, Move, State

O = Operation
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
BOUNDS = (
    Bounds(epochs=2, batches=2),
    Bounds(epochs=2, batches=2, max_steps=2),
    Bounds(epochs=2, batches=0, valid_batches=1),
    Bounds(epochs=2, batches=1, valid_batches=1),
    Bounds(epochs=1, batches=2, valid_batches=1, max_steps=1),
    Bounds(epochs=1, batches=2, valid_batches=2, weightless=True),
    Bounds(epochs=0, batches=1),
    Bounds(epochs=1, batches=1, max_steps=0),
    Bounds(epochs=1, batches=2, players=(1, 2)),
    Bounds(epochs=1, batches=2, max_steps=2, weightless=True, players=(1, 1)),
    Bounds(epochs=1, batches=1, valid_batches=1, players=(1, 1)),
    *(
        (Bounds(epochs=2, batches=2, valid_batches=1), Bounds(epochs=2, batches=2, valid_batches=1, max_steps=2))
        * THOROUGH
    ),
)
EARLY = (
    Bounds(epochs=1, batches=1, valid_batches=1),
    *((Bounds(epochs=2, batches=2), Bounds(epochs=2, batches=1, valid_batches=1)) * THOROUGH),
)
LOOP = [O.FORWARD, O.LOSS, O.BACKWARD, O.UNSCALE, O.STEP, O.ZERO]


@functools.cache
def explored(bounds: Bounds, early: bool = False) -> Exploration:
    return Exploration(bounds, early=early)


everywhere = pytest.mark.parametrize("bounds", BOUNDS, ids=str)


# ------------------------------------------------------------------------ laws of the rows alone


def check_last_rows(machine: Machine) -> None:
    for place in (*Phase, *Junction):
        unguarded = [not edge.guard for edge in machine.rows(place)]
        has_no_way_on = place in FINAL or place is Junction.RESUMED
        assert unguarded == ([] if has_no_way_on else [False] * (len(unguarded) - 1) + [True]), place


def check_calls_are_bracketed(machine: Machine) -> None:
    for edge in machine.table:
        assert (edge.source is Phase.READY) == (edge.target is Phase.SETUP), edge
        assert (edge.source is Phase.TEARDOWN) == (edge.target in FINAL), edge
        assert (edge.source is Phase.SETUP) >= (edge.target in (Phase.TRAIN_BEGIN, Junction.RESUMED)), edge


def test_last_row_of_each_place_has_no_guard() -> None:
    """There is always a way on, except from the final phases, and no row stands behind an unguarded one."""
    check_last_rows(Machine())


def test_setup_and_teardown_bracket_each_call() -> None:
    """SETUP comes first and TEARDOWN last in every call of run, and nothing leads there from elsewhere."""
    check_calls_are_bracketed(Machine())


# ------------------------------------------------------------------- laws of everything that happens


def check_places_reached(explorations: Iterable[Exploration]) -> None:
    reached = {move.place for exploration in explorations for move in exploration.moves}
    assert reached == {*Phase, *Junction} - {Phase.READY, Junction.RESUMED}


def check_rows_used(explorations: Iterable[Exploration], table: tuple[Edge, ...] = TABLE) -> None:
    used = {move.edge for exploration in explorations for move in exploration.moves}
    assert [str(edge) for edge in table if edge not in used] == []


def check_paths_end(exploration: Exploration) -> None:
    before: dict[object, set[object]] = {}
    for move in exploration.moves:
        before.setdefault((move.place, move.after), set()).add((move.edge.source, move.before))
    tuple(graphlib.TopologicalSorter(before).static_order())  # raises CycleError, with the cycle
    for move in exploration.moves:
        if move.place in FINAL:
            at = move.after.at
            assert (move.place is Phase.FAILED) == (at.error != "")
            assert (move.place is Phase.SUSPENDED) == (at.error == "" and at.resume_at is not None)


def check_suspended_goes_on(exploration: Exploration) -> None:
    @functools.cache
    def ends(state: State) -> frozenset[Place]:
        if state[0] in FINAL:
            return frozenset({state[0]})
        return frozenset().union(*(ends(after) for _, after in exploration.cross(state)))

    for state in exploration.suspended:
        assert ends(exploration.resumed(state)) == {Phase.DONE}, state


def check_steps_have_gradients(exploration: Exploration) -> None:
    for move in exploration.moves:
        if O.STEP in move.edge.operations:
            assert move.before.seen.window > 0, move
        if move.place is Phase.EPOCH_END:
            assert move.after.seen.window == 0, "a leftover window was forgotten"
            assert not any(move.after.seen.windows), "the leftover window of a player was forgotten"


def check_settled(exploration: Exploration) -> None:
    for move in exploration.moves:
        for predicate, value in SETTLED.get(move.place, {}).items():
            assert predicate(move.after.at) == value, move
        if batches_over(move.before.at) != batches_over(move.after.at):
            assert move.place in SETTLED, move
        if not exploration.bounds.players:
            for predicate, value in WITHOUT_TURNS.items():
                assert predicate(move.after.at) == value, move


def check_brackets(exploration: Exploration) -> None:
    for move in exploration.moves:
        is_open, place = move.before.seen.open, move.edge.target
        if O.ABANDON in move.edge.operations:
            assert is_open in (("train", "epoch", "valid"), ("train", "valid"))
            is_open = is_open[:-1]
        if place in BRACKETS:
            assert is_open in BRACKETS[place][0], move
        if place in CLOSES:
            assert is_open[-1:] == (CLOSES[place],), move
        if place is Phase.SUSPEND:
            assert is_open in (("train", "epoch"), ("train",)), move
        if place is Phase.DONE:
            assert is_open == (), move


def check_counters(exploration: Exploration) -> None:
    for move in exploration.moves:
        before, at, seen = move.before.at, move.after.at, move.after.seen
        counted = (at.epoch, at.batch, at.iteration, at.samples, at.step, at.pending)
        assert counted == (seen.epochs, seen.batches, seen.iterations, seen.samples, seen.steps, seen.window), move
        assert (before.epoch, before.iteration, before.samples, before.step) <= counted[:1] + counted[2:5], move


def check_turns(exploration: Exploration) -> None:
    for move in exploration.moves:
        before, seen, players = move.before.seen, move.after.seen, move.after.at.players
        assert (players.steps, players.waiting) == (seen.taken, seen.windows), move
        assert players.names.index(players.player) == seen.playing if players.player else seen.playing == -1, move
        if move.place is not Junction.FETCHED and not move.after.at.error:  # where the machine does not know them yet
            assert players.coming == tuple(players.names[i] for i in seen.to_come), move
        assert sum(players.steps) == seen.steps or not players, move
        if O.TURN in move.edge.operations:
            assert before.players, move
            assert move.before.at.players.player, "the workload is told who plays"
        if O.FETCH in move.edge.operations:
            assert not before.to_come, "a batch was fetched though a player has not had its turn"
        if move.edge.source is Junction.NEXT_TURN and move.place is Phase.STEP_BEGIN:
            assert before.window > 0, "a turn for a window that is empty"


def check_left_out(exploration: Exploration) -> None:
    for move in exploration.moves:
        if O.FORWARD in move.edge.operations:
            assert move.before.seen.size > 0, move
        if O.EVALUATE in move.edge.operations:
            assert move.before.at.fetched > 0, move
        if O.DISCARD in move.edge.operations:
            assert move.before.seen.undecided, move
        if move.place is Phase.BATCH_END:
            assert not move.after.seen.undecided, move


def check_data_ends(exploration: Exploration) -> None:
    for move in exploration.moves:
        if O.FETCH in move.edge.operations:
            assert not move.before.at.batches_over or O.OPEN in move.edge.operations, move
        if O.FORWARD in move.edge.operations:
            assert not move.before.at.exhausted, move


def check_validations(exploration: Exploration) -> None:
    for move in exploration.moves:
        if move.edge.source is Junction.BATCHES_OVER and move.place is Phase.VALID_BEGIN:
            assert not move.before.seen.fresh, "validated twice without a batch in between"
        if move.edge.source is Junction.BATCHES_OVER and move.place is Phase.EPOCH_END:
            asked_not_to = Flag.SKIP_VALID in move.edge.guard
            assert asked_not_to or move.before.seen.fresh or not move.before.at.has_valid, "not validated"


def check_stop_at_steps(exploration: Exploration) -> None:
    limit = exploration.bounds.max_steps
    for move in exploration.moves:
        if limit is not None and (O.STEP in move.edge.operations or O.FORWARD in move.edge.operations):
            assert move.before.seen.steps < limit or move.before.at.batches_over, move
        assert limit is None or move.after.seen.steps <= limit, "a step beyond the plan"


@everywhere
def test_every_path_ends(bounds: Bounds) -> None:
    """No state comes twice in one call of run, so every path ends: in DONE, SUSPENDED or FAILED, and for its reason."""
    check_paths_end(explored(bounds))


@everywhere
def test_suspended_training_goes_on(bounds: Bounds) -> None:
    """Wherever a training was suspended, and whatever was asked before, another call of run brings it to DONE."""
    check_suspended_goes_on(explored(bounds))


@everywhere
def test_no_step_without_gradient(bounds: Bounds) -> None:
    """A step is taken only if a backward pass waits for it, and no epoch ends with one waiting."""
    check_steps_have_gradients(explored(bounds))


@everywhere
def test_what_is_settled_stays_so(bounds: Bounds) -> None:
    """What is known of the counters at a place is true, and stays true until another place says otherwise."""
    check_settled(explored(bounds))


@everywhere
def test_brackets_nest(bounds: Bounds) -> None:
    """What begins ends, inside out; a batch that was fetched always ends, also before a suspension."""
    check_brackets(explored(bounds))


@everywhere
def test_counters_count(bounds: Bounds) -> None:
    """Epochs, batches, iterations, samples, steps and pending are what an observer counts; four of them never fall."""
    check_counters(explored(bounds))


@everywhere
def test_turns_are_taken_in_order(bounds: Bounds) -> None:
    """At each batch those play that are due, in their order; each has its own window and counts its own steps."""
    check_turns(explored(bounds))


@everywhere
def test_batch_is_trained_or_discarded(bounds: Bounds) -> None:
    """Each batch that went forward goes backward or is discarded, once; one that counts 0 does not go forward."""
    check_left_out(explored(bounds))


@everywhere
def test_data_end(bounds: Bounds) -> None:
    """Nothing is fetched from data that are over, and nothing goes forward without a batch."""
    check_data_ends(explored(bounds))


@everywhere
def test_weights_are_validated_once(bounds: Bounds) -> None:
    """An epoch ends validated, unless SKIP_VALID was raised, and not twice if nothing happened in between."""
    check_validations(explored(bounds))


@everywhere
def test_no_step_beyond_the_plan(bounds: Bounds) -> None:
    """With max_steps taken no batch goes forward; only a leftover window may still be stepped."""
    check_stop_at_steps(explored(bounds))


def test_every_place_is_reached_and_every_row_used() -> None:
    """There is no dead place and no dead row."""
    explorations = [explored(bounds) for bounds in BOUNDS]
    check_places_reached(explorations)
    check_rows_used(explorations)
    print(f"{sum(e.states for e in explorations):,} states, {len(TABLE)} rows")


@pytest.mark.parametrize("bounds", EARLY, ids=str)
def test_when_a_flag_is_raised_does_not_matter(bounds: Bounds) -> None:
    """A flag that is raised earlier than where it is read leads nowhere else: so the laws above hold for all."""
    assert _happenings(explored(bounds, early=True)) == _happenings(explored(bounds))


def _happenings(exploration: Exploration) -> set[object]:
    return {
        (move.edge, str(move.before.at), move.before.seen, move.outcomes, str(move.after.at), move.after.seen)
        for move in exploration.moves
    }


@everywhere
def test_choose_reads_the_table_from_the_top(bounds: Bounds) -> None:
    """`choose` finds the row that this module's own reading finds."""
    exploration = explored(bounds)
    for number, (place, flags, situation) in enumerate(exploration):
        if number % 89 == 0 and place not in FINAL:
            assert choose(place, Flag(flags), situation.at) is exploration.choose(place, flags, situation)


# ----------------------------------------------------------------------------- laws of the flags


def walk(exploration: Exploration, state: State) -> Iterator[Move]:
    """The moves from a state until the call ends, if every operation answers the first thing it may."""
    while state[0] not in FINAL:
        move, state = next(exploration.cross(state))
        yield move


def check_order_of_operations(exploration: Exploration) -> None:
    operations = [o for move in walk(exploration, (Phase.READY, 0, exploration.first)) for o in move.edge.operations]
    batches, epochs = exploration.bounds.batches, exploration.bounds.epochs
    validation = [
        O.OPEN_VALID,
        *[O.FETCH_VALID, O.EVALUATE] * exploration.bounds.valid_batches,
        O.FETCH_VALID,
        O.MEASURE_VALID,
    ]
    batch = {
        iteration: [O.TURN, *LOOP] * sum((iteration + 1) % every == 0 for every in exploration.bounds.players) or LOOP
        for iteration in range(batches * epochs)
    }
    expected = [O.PREPARE]
    for epoch in range(epochs):
        in_epoch = range(epoch * batches, (epoch + 1) * batches)
        expected += [O.OPEN, *(o for i in in_epoch for o in (O.FETCH, *batch[i])), O.FETCH]
        expected += [*validation * exploration.first.at.has_valid, O.MEASURE]
    assert operations == [*expected, O.FINISH]


@pytest.mark.parametrize(
    "bounds", [bounds for bounds in BOUNDS if bounds.batches and bounds.max_steps is None], ids=str
)
def test_order_of_operations(bounds: Bounds) -> None:
    """With no flag raised a training is the five-line loop: forward, loss, backward, (unscale,) step, zero."""
    check_order_of_operations(explored(bounds))


@pytest.mark.parametrize(
    ("flags", "operations"),
    [
        (Flag.NONE, [O.FORWARD, O.LOSS, O.BACKWARD, O.UNSCALE, O.STEP, O.ZERO]),
        (Flag.SKIP_BATCH, []),
        (Flag.SKIP_BACKWARD, [O.FORWARD, O.LOSS, O.DISCARD]),
        (Flag.SKIP_STEP, [O.FORWARD, O.LOSS, O.BACKWARD, O.ZERO]),
        (Flag.SKIP_ZERO, [O.FORWARD, O.LOSS, O.BACKWARD, O.UNSCALE, O.STEP]),
        (Flag.SKIP_STEP | Flag.SKIP_ZERO, [O.FORWARD, O.LOSS, O.BACKWARD]),
        (~BATCH_FLAGS, [O.FORWARD, O.LOSS, O.BACKWARD, O.UNSCALE, O.STEP, O.ZERO]),
    ],
    ids=str,
)
def test_a_skip_leaves_out_its_own_operation(flags: Flag, operations: list[O]) -> None:
    """A flag leaves out exactly its own operation and what depends on it, and no flag but those of a batch any."""
    exploration = explored(BOUNDS[0])
    begun = next(move.after for move in exploration.moves if move.place is Phase.BATCH_BEGIN)
    done = []
    for move in walk(exploration, (Phase.BATCH_BEGIN, flags.value, begun)):
        done += move.edge.operations
        if move.place is Phase.BATCH_END:
            break
    assert done == operations


def ahead(exploration: Exploration, flag: Flag, state: State) -> Iterator[State]:
    """The states that may follow in this call while the flag stays up, with at most one other flag raised by then."""
    states, seen = [state], {state}
    while states:
        place, flags, situation = states.pop()
        yield place, flags, situation
        onward = []
        if flags == flag.value:
            onward += [(place, flags | other.value, situation) for other in exploration.can_raise(place)]
        if place not in FINAL:
            onward += [after for _, after in exploration.cross((place, flags, situation))]
        new = {state for state in onward if state[1] & flag.value} - seen
        seen |= new
        states.extend(new)


def raised(exploration: Exploration, flag: Flag, phase: Phase) -> Iterator[State]:
    """The flag alone, raised at the phase in every situation of a training that was not suspended before."""
    situations = {move.after for move in exploration.moves if move.place is phase and not move.after.at.error}
    return ((phase, flag.value, situation) for situation in situations if not situation.at.resume_at)


def matters(exploration: Exploration, flag: Flag, state: State) -> bool:
    place, flags, situation = state
    if place in FINAL:
        return False
    with_it = exploration.choose(place, flags, situation)
    return with_it is not exploration.choose(place, flags & ~flag.value, situation)


@pytest.mark.parametrize("flag", Flag, ids=str)
def test_flags_are_refused_exactly_where_nothing_reads_them(flag: Flag) -> None:
    """A flag may be raised where, on some path ahead, the machine goes another way for it before it falls."""
    exploration = explored(Bounds(epochs=2, batches=1, valid_batches=1))
    changes_something = tuple(
        phase
        for phase in CONSULTED
        if any(
            matters(exploration, flag, state)
            for start in raised(exploration, flag, phase)
            for state in ahead(exploration, flag, start)
        )
    )
    assert changes_something == READABLE[flag]


BATCH = (Phase.BATCH_BEGIN, Phase.LOSS_BEGIN, Phase.LOSS_END, Phase.BACKWARD_END, Phase.STEP_BEGIN, Phase.STEP_END)
IN_EPOCH = (Phase.EPOCH_BEGIN, *BATCH, Phase.BATCH_END, Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN)
SCOPES = [
    (BATCH_FLAGS, (*BATCH, Phase.BATCH_END), (Phase.BATCH_BEGIN, Phase.VALID_BEGIN, Phase.EPOCH_END)),
    (Flag.SKIP_VALID | Flag.STOP_EPOCH, IN_EPOCH, (Phase.EPOCH_BEGIN,)),
    (VALID_FLAGS, (*IN_EPOCH, Phase.VALID_BATCH_END), (Phase.VALID_END,)),
    (Flag.STOP_TRAINING, CONSULTED[1:-3], (Phase.EPOCH_BEGIN,)),
]


def check_scopes(exploration: Exploration) -> None:
    for flags, phases, gone_at in SCOPES:
        for flag in flags:
            for phase in phases:
                for start in raised(exploration, flag, phase):
                    for state in ahead(exploration, flag, start):
                        still_there = state[0] is phase and state[2] is start[2]
                        assert still_there or state[0] not in gone_at, f"{flag} of {phase} is up at {state[0]}"


def test_flags_fall_at_the_end_of_their_scope() -> None:
    """Flags of a batch do not reach another one, nor those of an epoch another epoch, nor VALIDATE beyond VALID_END."""
    check_scopes(explored(Bounds(epochs=2, batches=1, valid_batches=1)))
