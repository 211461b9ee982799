"""The laws have teeth: each of these broken machines is caught by the law that it breaks."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterator

import attrs
import pytest
from hypothesis import is_hypothesis_test

from fsm_train import cursor, watch
from fsm_train.core import fuse, merge
from fsm_train.core.callback import Callback
from fsm_train.core.phase import Flag, Junction, Operation, Phase, Place
from fsm_train.core.state import Draft, Plan
from fsm_train.core.table import (
    ROWS,
    TABLE,
    Edge,
    Effect,
    Outcome,
    Term,
    effects,
    exhausted,
    falling,
    steps_reached,
    weighs_nothing,
)
from fsm_train.core.transition import Transition
from fsm_train.supervised import means, player
from fsm_train.supervised.workload import Supervised
from property_tests import strategies as our
from property_tests import test_means, test_merge, test_runs, test_table, test_turns
from property_tests.exploration import Bounds, Exploration, Machine

CAUGHT = (AssertionError, graphlib.CycleError, pytest.fail.Exception)
VALIDATED = Bounds(epochs=1, batches=2, valid_batches=1)
PLAIN = Bounds(epochs=2, batches=1)
TURNS = Bounds(epochs=1, batches=1, players=(1, 1))
WEIGHTLESS = Bounds(epochs=1, batches=1, valid_batches=1, weightless=True)


# --------------------------------------------------------------------------------- broken tables


def row(source: Place, target: Place, *guard: Term) -> Edge:
    """The first row from one place to the other with these terms in its guard."""
    return next(e for e in TABLE if (e.source, e.target) == (source, target) and set(guard) <= set(e.guard))


def without(edge: Edge) -> Machine:
    return Machine(tuple(other for other in TABLE if other is not edge))


def swapped(one: Edge, other: Edge) -> Machine:
    places = {one: other, other: one}
    return Machine(tuple(places.get(edge, edge) for edge in TABLE))


def doing(edge: Edge, *operations: Operation) -> Machine:
    return Machine(tuple(attrs.evolve(e, operations=operations) if e is edge else e for e in TABLE))


def with_row(edge: Edge) -> Machine:
    return Machine((edge, *TABLE))


def never_lowering(flags: Flag) -> Machine:
    return Machine(falling=lambda edge: falling(edge) & ~flags)


def affecting(where: Operation | Place, effect: Effect | None = None) -> Machine:
    """The operation, or arriving at the place, has this effect instead of its own."""

    def broken(edge: Edge) -> Iterator[tuple[Operation | None, Effect | None]]:
        for operation, own in effects(edge):
            yield operation, effect if where in (operation or edge.target,) else own

    return Machine(effects=broken)


def counts_always(at: Draft, _: Outcome) -> None:
    at.pending = 0
    at.step += 1
    at.validated_at = -1


def keeps_validated(at: Draft, outcome: Outcome) -> None:
    at.pending = 0
    at.step += bool(outcome)


def keeps_the_window(at: Draft, _: Outcome) -> None:
    if at.batches_over:
        at.players, at.pending = at.players.draining(at.pending)
    else:
        at.players, _ = at.players.next_turn(at.iteration, at.pending, at.fetched)


def ends_each_turn(at: Draft, _: Outcome) -> None:
    at.batch += 1
    at.iteration += 1
    at.samples += at.fetched


P, J, O, F = Phase, Junction, Operation, Flag
LEFTOVER = row(J.BATCHES_OVER, P.STEP_BEGIN)
LEFTOVER_SKIPPED = row(P.STEP_BEGIN, J.BATCHES_OVER, F.SKIP_STEP)
MUTANTS: dict[str, tuple[Machine, Bounds, Callable[[Exploration], None]]] = {
    "leftover window dropped": (without(LEFTOVER), PLAIN, test_table.check_steps_have_gradients),
    "leftover window after SKIP_VALID": (
        swapped(LEFTOVER, row(J.BATCHES_OVER, P.EPOCH_END, F.SKIP_VALID)),
        PLAIN,
        test_table.check_steps_have_gradients,
    ),
    "leftover step skipped into a batch": (without(LEFTOVER_SKIPPED), PLAIN, test_table.check_brackets),
    "leftover gradients kept": (doing(LEFTOVER_SKIPPED), PLAIN, test_table.check_paths_end),
    "zero before step": (
        doing(row(P.STEP_BEGIN, P.STEP_END), O.ZERO, O.STEP),
        PLAIN,
        test_table.check_order_of_operations,
    ),
    "batch left out and not discarded": (
        doing(row(P.LOSS_END, P.BATCH_END)),
        PLAIN,
        test_table.check_left_out,
    ),
    "output left out and not discarded": (
        doing(row(P.LOSS_BEGIN, P.BATCH_END)),
        PLAIN,
        test_table.check_left_out,
    ),
    "batch that counts 0 is trained": (
        without(row(J.FETCHED, P.BATCH_BEGIN, weighs_nothing)),
        WEIGHTLESS,
        test_table.check_left_out,
    ),
    "batch that counts 0 is evaluated": (
        without(row(J.VALID_FETCHED, J.VALID_FETCHED)),
        WEIGHTLESS,
        test_table.check_left_out,
    ),
    "held-back step counted": (affecting(O.STEP, counts_always), PLAIN, test_table.check_counters),
    "batch not counted": (affecting(P.BATCH_END), PLAIN, test_table.check_counters),
    "epoch not counted": (affecting(P.EPOCH_END), PLAIN, test_table.check_counters),
    "backward not counted": (affecting(O.BACKWARD), PLAIN, test_table.check_counters),
    "flags of a batch stay up": (never_lowering(F.SKIP_BATCH), PLAIN, test_table.check_scopes),
    "flags of an epoch stay up": (never_lowering(F.STOP_EPOCH), PLAIN, test_table.check_scopes),
    "VALIDATE stays up": (never_lowering(F.VALIDATE), VALIDATED, test_table.check_scopes),
    "validation not noted": (affecting(O.MEASURE_VALID), VALIDATED, test_table.check_validations),
    "validated before the last step": (
        affecting(O.STEP, keeps_validated),
        VALIDATED,
        test_table.check_validations,
    ),
    "epoch that did not begin goes on": (
        without(row(P.VALID_END, P.EPOCH_BEGIN)),
        VALIDATED,
        test_table.check_brackets,
    ),
    "extended training keeps the last epoch's batches": (
        affecting(J.NO_EPOCH),
        attrs.evolve(VALIDATED, epochs=2, batches=1),
        test_table.check_counters,
    ),
    "validation left open": (doing(row(P.VALID_BATCH_END, P.SUSPEND)), VALIDATED, test_table.check_brackets),
    "suspended within a batch": (
        with_row(Edge(P.LOSS_END, (F.SUSPEND,), (), P.SUSPEND)),
        PLAIN,
        test_table.check_brackets,
    ),
    "end of the batches not noted": (affecting(J.BATCHES_OVER), PLAIN, test_table.check_settled),
    "suspended for ever": (affecting(J.RESUMED), PLAIN, test_table.check_suspended_goes_on),
    "fetched from data that are over": (
        doing(row(P.STEP_END, J.BATCHES_OVER), O.ZERO, O.FETCH),
        PLAIN,
        test_table.check_data_ends,
    ),
    "steps beyond the plan": (
        without(row(P.BATCH_END, J.BATCHES_OVER, steps_reached)),
        attrs.evolve(PLAIN, batches=2, max_steps=1),
        test_table.check_stop_at_steps,
    ),
    "turns left out": (without(row(P.BATCH_END, J.NEXT_TURN)), TURNS, test_table.check_turns),
    "turns left out after a validation": (
        without(row(P.VALID_END, J.NEXT_TURN)),
        attrs.evolve(TURNS, valid_batches=1),
        test_table.check_turns,
    ),
    "turn not announced": (doing(ROWS[J.NEXT_TURN][-1]), TURNS, test_table.check_order_of_operations),
    "one window for all players": (affecting(J.NEXT_TURN, keeps_the_window), TURNS, test_table.check_turns),
    "step counted for nobody": (affecting(O.STEP, keeps_validated), TURNS, test_table.check_turns),
    "batch over with each turn": (affecting(P.BATCH_END, ends_each_turn), TURNS, test_table.check_counters),
    "leftover window of a player dropped": (
        without(row(J.BATCHES_OVER, J.NEXT_TURN)),
        TURNS,
        test_table.check_steps_have_gradients,
    ),
    "row that never holds": (
        with_row(Edge(P.BATCH_BEGIN, (exhausted,), (), P.BATCH_END)),
        PLAIN,
        lambda exploration: test_table.check_rows_used([exploration], exploration.machine.rows(P.BATCH_BEGIN)),
    ),
    "row behind an unguarded one": (
        swapped(row(P.LOSS_END, P.BATCH_END), row(P.LOSS_END, P.BACKWARD_END)),
        PLAIN,
        lambda exploration: test_table.check_last_rows(exploration.machine),
    ),
    "TEARDOWN passed by": (
        with_row(Edge(P.TRAIN_END, (F.STOP_TRAINING,), (), P.DONE)),
        PLAIN,
        lambda exploration: test_table.check_calls_are_bracketed(exploration.machine),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_broken_table_is_caught(name: str) -> None:
    """A table, or an effect of it, that is wrong in one place breaks the law about it, which the right one keeps."""
    machine, bounds, check = MUTANTS[name]
    check(Exploration(bounds))
    with pytest.raises(CAUGHT):
        check(Exploration(bounds, machine))


# ------------------------------------------------------------------------- broken merging and walking


def raising(name: str, phase: Phase, flags: Flag) -> Callback[None]:
    return Callback(name, phase, lambda state, memory: Transition(flags=flags) if state.iteration == 0 else None)


TRAINING = our.Training(
    our.World(batches=(2,), valid_batches=1),
    Plan(epochs=2),
    (raising("a", P.LOSS_END, F.SKIP_STEP | F.SKIP_ZERO), raising("b", P.BATCH_BEGIN, F.SKIP_VALID)),
)
ANSWERS = [
    (Callback("a", P.EPOCH_END, test_merge.nothing), Transition(commands=(our.DoLast(1), our.Do(2)))),
    (Callback("b", P.EPOCH_END, test_merge.nothing, order=-1), Transition(commands=(our.Do(3),))),
]
NEVER = frozenset[Place]()
KEPT_AND_NOT = [(1, False, 1.0, None), (2, True, 0.0, P.LOSS_END), (0.5, False, 3.0, None)]
ADD, LOSS = means.Mean.add, Supervised.loss


def metered_at_once(work: Supervised) -> None:
    LOSS(work)
    assert work._loss is not None
    work.train_meters.add(work._loss, work.output, work.target, work.batch_size)


def law(test: Callable[..., None]) -> Callable[..., None]:
    """What a property says of one example."""
    return test.hypothesis.inner_test if is_hypothesis_test(test) else test


BROKEN: dict[str, tuple[object, str, object, Callable[..., None], tuple[object, ...]]] = {
    "late flags let through": (
        merge,
        "_refusal",
        lambda callback, answer, state: None,
        test_merge.test_late_flag_is_refused,
        (F.SKIP_BACKWARD, P.BATCH_END),
    ),
    "commands as they come": (
        merge,
        "_place",
        lambda ordered: 0,
        test_merge.test_commands_are_sorted_by_order_and_position,
        (ANSWERS,),
    ),
    "conflicts by the first to come": (
        merge,
        "sorted",
        lambda values, key=None: list(values),
        test_merge.test_conflict_of_many_names_the_same_two,
        ([("d", 4.0), ("c", 2.0), ("b", 0.5), ("a", 0.5)],),
    ),
    "paths past who watches": (
        cursor,
        "known_paths",
        lambda place, flags, watched, settled: fuse.fused_paths(place, flags, NEVER, dict(settled)),
        test_runs.test_interpreter_is_the_fold_of_the_table,
        (TRAINING,),
    ),
    "flags stay up on a path": (
        fuse,
        "falling",
        lambda edge: falling(edge) & ~F.SKIP_VALID,
        test_runs.test_interpreter_is_the_fold_of_the_table,
        (TRAINING,),
    ),
    "effects lost on a path": (
        fuse,
        "effects",
        lambda edge: ((operation, effect) for operation, effect in effects(edge) if operation),
        test_runs.test_interpreter_is_the_fold_of_the_table,
        (TRAINING,),
    ),
    "resumed an epoch too late": (
        fuse,
        "effects",
        affecting(P.SUSPEND, lambda at, _: setattr(at, "resume_at", P.EPOCH_END)).effects,
        test_runs.test_suspended_run_is_the_same_run,
        (TRAINING, [5]),
    ),
    "every forgotten": (
        watch,
        "is_due",
        lambda callback, phase, at: True,
        test_runs.test_every_consults_at_multiples,
        (TRAINING, 2),
    ),
    "batches that count alike": (
        means.Mean,
        "add",
        lambda self, value, weight: ADD(self, value, 1),
        test_means.test_metrics_are_one_pass_over_what_was_kept,
        (KEPT_AND_NOT, 1),
    ),
    "buffers of what is left out": (
        Supervised,
        "discard",
        lambda work: None,
        test_means.test_metrics_are_one_pass_over_what_was_kept,
        (KEPT_AND_NOT, 1),
    ),
    "metered before it is kept": (
        Supervised,
        "loss",
        metered_at_once,
        test_means.test_metrics_are_one_pass_over_what_was_kept,
        (KEPT_AND_NOT, 2),
    ),
    "gradients of all players in one": (
        player.PlayerState,
        "restore_gradients",
        lambda state: None,
        test_turns.test_turns_are_alternation_by_hand,
        ([(1, 2), (1, 1)],),
    ),
    "left in disorder": (
        cursor.Cursor,
        "fail",
        lambda self, error: None,
        test_runs.test_callback_that_raises_ends_in_good_order,
        (TRAINING, (P.LOSS_END, 1)),
    ),
}


@pytest.fixture
def _no_paths_of_a_broken_table() -> Iterator[None]:
    """What is worked out once in a process is forgotten afterwards."""
    yield
    fuse.known_paths.cache_clear()


@pytest.mark.usefixtures("_no_paths_of_a_broken_table")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_function_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the product that is replaced by a wrong one breaks the law about it, which the right one keeps."""
    module, function, broken, test, example = BROKEN[name]
    law(test)(*example)
    monkeypatch.setattr(module, function, broken, raising=function != "sorted")
    fuse.known_paths.cache_clear()
    with pytest.raises(CAUGHT):
        law(test)(*example)
