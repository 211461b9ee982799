"""The machine: every legal move, as data, and the pure functions that read it.

The rules of this file:

- `TABLE` is read from the top: from a place, the first row whose guard holds is the edge. There is
  always one, since the last row of each place has no guard.
- A guard is a tuple of terms that must all hold. A `Flag` holds if any of its members is raised; a
  named predicate is a function of the state, in `guards.py`. "Either … or" is two rows.
- While an edge is crossed its operations happen, in order. What they do to the state is in `AFTER`,
  what arriving at a place does in `ON_ENTRY` (both in `effects.py`), and which flags fall in `FALLS_ON_LEAVING`,
  `FALLS_ON_ENTRY` and `FALLS_AFTER`. A fifth column is the flag that the machine raises itself.
- Where a suspended or saved training resumes is in `RESUMES_AT`. Each place may also fail: what was
  saved then resumes as in `FAILED_RESUMES_AT`, and `failing.py` says how the machine leaves.
- Nothing else decides where the machine goes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping

import attrs

from .effects import AFTER as AFTER
from .effects import ON_ENTRY as ON_ENTRY
from .effects import Effect as Effect
from .effects import Outcome as Outcome
from .guards import (
    batches_and_steps_over,
    before_an_epoch,
    continuing,
    exhausted,
    failed_before,
    has_valid,
    leftover,
    leftover_of_player,
    resuming,
    taking_turns,
    turns_left,
    validated,
)
from .guards import batches_over as batches_over  # as before: imported from here too
from .guards import epochs_reached as epochs_reached
from .guards import steps_reached as steps_reached
from .guards import weighs_nothing as weighs_nothing
from .phase import BATCH_FLAGS, CONSULTED, EPOCH_FLAGS, VALID_FLAGS, Flag, Junction, Operation, Phase, Place
from .phase import place_name as place_name  # as before: imported from here too
from .phase import term_name as term_name
from .state import Draft

Predicate = Callable[[Draft], bool]
Term = Flag | Predicate

# ------------------------------------------------------------------------------------- the table


@attrs.frozen
class Edge:
    """One row: from `source`, if `guard` holds, cross to `target`: `operations` happen, `raises` goes up."""

    source: Place
    guard: tuple[Term, ...]
    operations: tuple[Operation, ...]
    target: Place
    raises: Flag = Flag.NONE

    def __str__(self) -> str:
        guard = " and ".join(map(term_name, self.guard)) or "-"
        operations = ", ".join([*(o.value for o in self.operations), *(f"raise {f.name}" for f in self.raises)]) or "-"
        return f"{place_name(self.source):<18} {guard:<34} {operations:<16} {place_name(self.target)}"


def _table() -> tuple[Edge, ...]:
    F, J, O, P = Flag, Junction, Operation, Phase  # noqa: N806 - short names keep a row on a line

    rows: list[tuple[Place, tuple[Term, ...], tuple[Operation, ...], Place, *tuple[Flag, ...]]] = [
        # A call of run begins; a training begins, or resumes where it was.
        (P.READY, (), (O.PREPARE,), P.SETUP),
        (P.SETUP, (resuming,), (O.REPOSITION,), J.RESUMED),
        (P.SETUP, (continuing,), (O.REPOSITION,), P.TRAIN_BEGIN),
        (P.SETUP, (), (), P.TRAIN_BEGIN),
        (P.TRAIN_BEGIN, (F.STOP_TRAINING,), (), P.TRAIN_END),
        (P.TRAIN_BEGIN, (epochs_reached,), (), P.TRAIN_END),
        (P.TRAIN_BEGIN, (steps_reached,), (), P.TRAIN_END),
        (P.TRAIN_BEGIN, (F.VALIDATE, has_valid), (), J.NO_EPOCH),
        (P.TRAIN_BEGIN, (), (), P.EPOCH_BEGIN),
        (J.NO_EPOCH, (), (O.OPEN_VALID,), P.VALID_BEGIN),
        (P.EPOCH_BEGIN, (F.STOP_EPOCH | F.STOP_TRAINING,), (), J.BATCHES_OVER),
        (P.EPOCH_BEGIN, (), (O.OPEN, O.FETCH), J.FETCHED),
        # A batch, which is the five-line loop when no flag is raised.
        (J.FETCHED, (exhausted,), (), J.BATCHES_OVER),
        (J.FETCHED, (taking_turns,), (), J.NEXT_TURN),
        (J.FETCHED, (weighs_nothing,), (), P.BATCH_BEGIN, F.SKIP_BATCH),
        (J.FETCHED, (), (), P.BATCH_BEGIN),
        (J.NEXT_TURN, (batches_and_steps_over,), (O.TURN, O.ZERO), J.BATCHES_OVER),
        (J.NEXT_TURN, (batches_over,), (O.TURN, O.UNSCALE), P.STEP_BEGIN),
        (J.NEXT_TURN, (weighs_nothing,), (O.TURN,), P.BATCH_BEGIN, F.SKIP_BATCH),
        (J.NEXT_TURN, (), (O.TURN,), P.BATCH_BEGIN),
        (P.BATCH_BEGIN, (F.SKIP_BATCH,), (), P.BATCH_END),
        (P.BATCH_BEGIN, (), (O.FORWARD,), P.LOSS_BEGIN),
        (P.LOSS_BEGIN, (F.SKIP_BATCH,), (O.DISCARD,), P.BATCH_END),
        (P.LOSS_BEGIN, (), (O.LOSS,), P.LOSS_END),
        (P.LOSS_END, (F.SKIP_BACKWARD | F.SKIP_BATCH,), (O.DISCARD,), P.BATCH_END),
        (P.LOSS_END, (), (O.BACKWARD,), P.BACKWARD_END),
        (P.BACKWARD_END, (F.SKIP_STEP, F.SKIP_ZERO), (), P.BATCH_END),
        (P.BACKWARD_END, (F.SKIP_STEP,), (O.ZERO,), P.BATCH_END),
        (P.BACKWARD_END, (), (O.UNSCALE,), P.STEP_BEGIN),
        (P.STEP_BEGIN, (batches_over, F.SKIP_STEP), (O.ZERO,), J.BATCHES_OVER),
        (P.STEP_BEGIN, (F.SKIP_STEP, F.SKIP_ZERO), (), P.BATCH_END),
        (P.STEP_BEGIN, (F.SKIP_STEP,), (O.ZERO,), P.BATCH_END),
        (P.STEP_BEGIN, (), (O.STEP,), P.STEP_END),
        (P.STEP_END, (batches_over,), (O.ZERO,), J.BATCHES_OVER),
        (P.STEP_END, (F.SKIP_ZERO,), (), P.BATCH_END),
        (P.STEP_END, (), (O.ZERO,), P.BATCH_END),
        (P.BATCH_END, (F.SUSPEND,), (), P.SUSPEND),
        (P.BATCH_END, (F.VALIDATE, has_valid), (O.OPEN_VALID,), P.VALID_BEGIN),
        (P.BATCH_END, (F.STOP_EPOCH | F.STOP_TRAINING,), (), J.BATCHES_OVER),
        (P.BATCH_END, (steps_reached,), (), J.BATCHES_OVER),
        (P.BATCH_END, (turns_left,), (), J.NEXT_TURN),
        (P.BATCH_END, (), (O.FETCH,), J.FETCHED),
        # The end of an epoch: a step for the leftover window, then the validation.
        (J.BATCHES_OVER, (leftover_of_player,), (), J.NEXT_TURN),
        (J.BATCHES_OVER, (leftover,), (O.UNSCALE,), P.STEP_BEGIN),
        (J.BATCHES_OVER, (F.SKIP_VALID,), (O.MEASURE,), P.EPOCH_END),
        (J.BATCHES_OVER, (validated,), (O.MEASURE,), P.EPOCH_END),
        (J.BATCHES_OVER, (has_valid,), (O.OPEN_VALID,), P.VALID_BEGIN),
        (J.BATCHES_OVER, (), (O.MEASURE,), P.EPOCH_END),
        # A validation: at the end of an epoch, in the middle of it, or before the first one of this training.
        (P.VALID_BEGIN, (F.STOP_VALID,), (O.MEASURE_VALID,), P.VALID_END),
        (P.VALID_BEGIN, (), (O.FETCH_VALID,), J.VALID_FETCHED),
        (J.VALID_FETCHED, (exhausted,), (O.MEASURE_VALID,), P.VALID_END),
        (J.VALID_FETCHED, (weighs_nothing,), (O.FETCH_VALID,), J.VALID_FETCHED),
        (J.VALID_FETCHED, (), (), P.VALID_BATCH_BEGIN),
        (P.VALID_BATCH_BEGIN, (), (O.EVALUATE,), P.VALID_BATCH_END),
        (P.VALID_BATCH_END, (F.SUSPEND,), (O.ABANDON,), P.SUSPEND),
        (P.VALID_BATCH_END, (F.STOP_VALID,), (O.MEASURE_VALID,), P.VALID_END),
        (P.VALID_BATCH_END, (), (O.FETCH_VALID,), J.VALID_FETCHED),
        (J.VALID_ABANDONED, (), (O.OPEN_VALID,), P.VALID_BEGIN),
        (P.VALID_END, (F.SUSPEND,), (), P.SUSPEND),
        (P.VALID_END, (before_an_epoch, F.STOP_TRAINING), (), P.TRAIN_END),
        (P.VALID_END, (before_an_epoch,), (), P.EPOCH_BEGIN),
        (P.VALID_END, (batches_over,), (O.MEASURE,), P.EPOCH_END),
        (P.VALID_END, (F.STOP_EPOCH | F.STOP_TRAINING,), (), J.BATCHES_OVER),
        (P.VALID_END, (steps_reached,), (), J.BATCHES_OVER),
        (P.VALID_END, (turns_left,), (), J.NEXT_TURN),
        (P.VALID_END, (), (O.FETCH,), J.FETCHED),
        # The end of a training, and of a call of run.
        (P.EPOCH_END, (F.SUSPEND,), (), P.SUSPEND),
        (P.EPOCH_END, (F.STOP_TRAINING,), (), P.TRAIN_END),
        (P.EPOCH_END, (epochs_reached,), (), P.TRAIN_END),
        (P.EPOCH_END, (steps_reached,), (), P.TRAIN_END),
        (P.EPOCH_END, (), (), P.EPOCH_BEGIN),
        (P.TRAIN_END, (), (), P.TEARDOWN),
        (P.SUSPEND, (), (), P.TEARDOWN),
        (P.TEARDOWN, (failed_before,), (O.FINISH,), P.FAILED),
        (P.TEARDOWN, (resuming,), (O.FINISH,), P.SUSPENDED),
        (P.TEARDOWN, (), (O.FINISH,), P.DONE),
    ]
    return tuple(Edge(*row) for row in rows)


TABLE = _table()

ROWS: Mapping[Place, tuple[Edge, ...]] = {
    place: tuple(edge for edge in TABLE if edge.source is place) for place in (*Phase, *Junction)
}
"""The rows of each place, in the order in which they are tried. The final phases and RESUMED have none."""

SETTLED: Mapping[Place, Mapping[Term, bool]] = {
    Junction.NO_EPOCH: {batches_over: False},
    Phase.EPOCH_BEGIN: {batches_over: False},
    Phase.BATCH_BEGIN: {batches_over: False},
    Phase.LOSS_BEGIN: {batches_over: False},
    Phase.LOSS_END: {batches_over: False},
    Phase.BACKWARD_END: {batches_over: False},
    Junction.BATCHES_OVER: {batches_over: True},
}
"""What is known of the state at a place, and stays so until another one of these places is reached."""

WITHOUT_TURNS: Mapping[Term, bool] = {taking_turns: False, turns_left: False, leftover_of_player: False}
"""What is known of a training whose workload has no players, anywhere."""


# ------------------------------------------------------------- where a training resumes, and what crossing does

RESUMES_AT: Mapping[Place, Place] = {
    Phase.BATCH_END: Phase.BATCH_END,
    Phase.VALID_BATCH_END: Junction.VALID_ABANDONED,
    Phase.VALID_END: Phase.VALID_END,
    Phase.EPOCH_END: Phase.EPOCH_END,
}
"""By the place where a training is suspended or saved, the place where it resumes, entered as if never left."""

FAILED_RESUMES_AT: Mapping[Phase, Place] = {
    **dict.fromkeys((Phase.BATCH_BEGIN, Phase.LOSS_BEGIN, Phase.LOSS_END, Phase.BACKWARD_END), Phase.BATCH_END),
    **dict.fromkeys((Phase.STEP_BEGIN, Phase.STEP_END, Phase.BATCH_END), Phase.BATCH_END),
    **dict.fromkeys((Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END), Junction.VALID_ABANDONED),
    Phase.VALID_END: Phase.VALID_END,
    **dict.fromkeys((Phase.EPOCH_BEGIN, Phase.EPOCH_END, Phase.TRAIN_END), Phase.EPOCH_END),
}
"""The same by the last phase that a failed training reached: the end of what is whole. In an epoch's first batch that
is EPOCH_END, and at other phases nothing is whole."""


@functools.cache  # one function for one place, so that effects can be compared
def _suspended_at(place: Place) -> Effect:
    resume_at = RESUMES_AT.get(place, place)

    def suspended(at: Draft, _: Outcome) -> None:
        at.resume_at = resume_at

    return suspended


def effects(edge: Edge) -> Iterator[tuple[Operation | None, Effect | None]]:
    """What crossing the edge does to the state, in order: with each operation, and on arriving."""
    for operation in edge.operations:
        yield operation, AFTER.get(operation)
    if edge.target is Phase.SUSPEND:
        yield None, _suspended_at(edge.source)
    if edge.target in ON_ENTRY:
        yield None, ON_ENTRY[edge.target]


# ------------------------------------------------------------------------------- which flags fall

FALLS_ON_LEAVING: Mapping[Place, Flag] = {Phase.BATCH_END: BATCH_FLAGS}
FALLS_ON_ENTRY: Mapping[Place, Flag] = {
    Junction.BATCHES_OVER: BATCH_FLAGS,  # one raised for a leftover window does not reach into the next epoch
    **dict.fromkeys((Phase.EPOCH_BEGIN, Junction.NO_EPOCH), EPOCH_FLAGS),
    Phase.VALID_END: VALID_FLAGS,
}
FALLS_AFTER: Mapping[Operation, Flag] = {
    Operation.ABANDON: Flag.STOP_VALID,  # or the validation would be over as soon as it begins again
}


def falling(edge: Edge) -> Flag:
    """The flags that are lowered when this edge is crossed."""
    flags = FALLS_ON_LEAVING.get(edge.source, Flag.NONE) | FALLS_ON_ENTRY.get(edge.target, Flag.NONE)
    for operation in edge.operations:
        flags |= FALLS_AFTER.get(operation, Flag.NONE)
    return flags


# ------------------------------------------------------------------------- questions about the table


def reads(place: Place) -> Flag:
    """The flags that some guard at this place reads."""
    terms = (term for edge in ROWS[place] for term in edge.guard)
    return functools.reduce(operator.or_, (term for term in terms if isinstance(term, Flag)), Flag.NONE)


LEAVES = frozenset(place for place in ROWS if reads(place) & Flag.SUSPEND)
"""The places where a training can be left: an interrupt is acted on there."""


def _readable() -> Mapping[Flag, tuple[Phase, ...]]:
    """Backwards from where a flag is read, along the edges on which it does not fall."""
    edges = [(edge.source, edge.target, ~falling(edge)) for edge in TABLE if edge.target is not Junction.RESUMED]
    found = {}
    for flag in Flag:
        places = {place for place in ROWS if reads(place) & flag}
        stays = [(source, target) for source, target, kept in edges if kept & flag]
        while before := {source for source, target in stays if target in places and source not in places}:
            places |= before
        found[flag] = tuple(phase for phase in CONSULTED if phase in places)
    return found


READABLE = _readable()
"""For each flag the phases at which it can be raised in time: some guard reads it before it falls."""


def too_late(flags: Flag, phase: Phase) -> Iterator[Flag]:
    """Those of the flags that nothing would read any more if they were raised at this phase."""
    return (flag for flag in flags if phase not in READABLE[flag])
