"""The machine: every legal move, as data, and the pure functions that read it.

The rules of this file:

- `TABLE` is read from the top: from a place, the first row whose guard holds is the edge. There is
  always one, since the last row of each place has no guard.
- A guard is a tuple of terms that must all hold. A `Flag` holds if any of its members is raised; a
  named predicate is a function of the counters. "Either … or" is two rows.
- While an edge is crossed its operations happen, in order. What they do to the counters is in
  `AFTER`, what arriving somewhere does is in `ON_ENTRY`, and which flags fall on the way in `falling`.
- Nothing else decides where the machine goes. Any place may also fail: see `failed`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from .phase import BATCH_FLAGS, CONSULTED, EPOCH_FLAGS, MEASURES, VALID_FLAGS, Flag, Junction, Operation, Phase, Place
from .state import Counters, State, counters_of, state_at
from .values import NO_FACTS, Metrics

Predicate = Callable[[Counters], bool]
Term = Flag | Predicate
Effect = Callable[[Counters, "Outcome"], None]
Outcome = object
"""What an operation answers: a fetch the batch size or None, a step whether it stepped, a measure its metrics."""


# ---------------------------------------------------------------------------------------- guards


def resuming(at: Counters) -> bool:
    return at.resume_at is not None


def failed_before(at: Counters) -> bool:
    return at.error != ""


def epochs_reached(at: Counters) -> bool:
    return at.plan.epochs is not None and at.epoch >= at.plan.epochs


def steps_reached(at: Counters) -> bool:
    return at.plan.max_steps is not None and at.step >= at.plan.max_steps


def exhausted(at: Counters) -> bool:
    return at.exhausted


def batches_over(at: Counters) -> bool:
    return at.batches_over


def draining(at: Counters) -> bool:
    return at.batches_over


def leftover(at: Counters) -> bool:
    return at.pending > 0


def has_valid(at: Counters) -> bool:
    return at.has_valid


def validated(at: Counters) -> bool:
    return at.validated_at == at.iteration


# ------------------------------------------------------------------------------------- the table


@attrs.frozen
class Edge:
    """One row: from `source`, if `guard` holds, cross to `target` while `operations` happen."""

    source: Place
    guard: tuple[Term, ...]
    operations: tuple[Operation, ...]
    target: Place

    def __str__(self) -> str:
        guard = " and ".join(map(term_name, self.guard)) or "-"
        operations = ", ".join(operation.value for operation in self.operations) or "-"
        return f"{place_name(self.source):<18} {guard:<34} {operations:<16} {place_name(self.target)}"


def _table() -> tuple[Edge, ...]:
    F, J, O, P = Flag, Junction, Operation, Phase  # noqa: N806 - short names keep a row on a line

    rows: list[tuple[Place, tuple[Term, ...], tuple[Operation, ...], Place]] = [
        # A call of run begins; a training begins, or goes on where it was.
        (P.READY, (), (O.PREPARE,), P.SETUP),
        (P.SETUP, (resuming,), (O.REPOSITION,), J.RESUMED),
        (P.SETUP, (), (), P.TRAIN_BEGIN),
        (P.TRAIN_BEGIN, (F.STOP_TRAINING,), (), P.TRAIN_END),
        (P.TRAIN_BEGIN, (epochs_reached,), (), P.TRAIN_END),
        (P.TRAIN_BEGIN, (steps_reached,), (), P.TRAIN_END),
        (P.TRAIN_BEGIN, (), (), P.EPOCH_BEGIN),
        (P.EPOCH_BEGIN, (F.STOP_EPOCH | F.STOP_TRAINING,), (), J.BATCHES_OVER),
        (P.EPOCH_BEGIN, (), (O.OPEN, O.FETCH), J.FETCHED),
        # A batch, which is the five-line loop when no flag is raised.
        (J.FETCHED, (exhausted,), (), J.BATCHES_OVER),
        (J.FETCHED, (), (), P.BATCH_BEGIN),
        (P.BATCH_BEGIN, (F.SKIP_BATCH,), (), P.BATCH_END),
        (P.BATCH_BEGIN, (), (O.FORWARD,), P.LOSS_BEGIN),
        (P.LOSS_BEGIN, (F.SKIP_BATCH,), (), P.BATCH_END),
        (P.LOSS_BEGIN, (), (O.LOSS,), P.LOSS_END),
        (P.LOSS_END, (F.SKIP_BACKWARD | F.SKIP_BATCH,), (), P.BATCH_END),
        (P.LOSS_END, (), (O.BACKWARD,), P.BACKWARD_END),
        (P.BACKWARD_END, (F.SKIP_STEP, F.SKIP_ZERO), (), P.BATCH_END),
        (P.BACKWARD_END, (F.SKIP_STEP,), (O.ZERO,), P.BATCH_END),
        (P.BACKWARD_END, (), (O.UNSCALE,), P.STEP_BEGIN),
        (P.STEP_BEGIN, (draining, F.SKIP_STEP), (O.ZERO,), J.BATCHES_OVER),
        (P.STEP_BEGIN, (F.SKIP_STEP, F.SKIP_ZERO), (), P.BATCH_END),
        (P.STEP_BEGIN, (F.SKIP_STEP,), (O.ZERO,), P.BATCH_END),
        (P.STEP_BEGIN, (), (O.STEP,), P.STEP_END),
        (P.STEP_END, (draining,), (O.ZERO,), J.BATCHES_OVER),
        (P.STEP_END, (F.SKIP_ZERO,), (), P.BATCH_END),
        (P.STEP_END, (), (O.ZERO,), P.BATCH_END),
        (P.BATCH_END, (F.SUSPEND,), (), P.SUSPEND),
        (P.BATCH_END, (F.VALIDATE, has_valid), (O.OPEN_VALID,), P.VALID_BEGIN),
        (P.BATCH_END, (F.STOP_EPOCH | F.STOP_TRAINING,), (), J.BATCHES_OVER),
        (P.BATCH_END, (steps_reached,), (), J.BATCHES_OVER),
        (P.BATCH_END, (), (O.FETCH,), J.FETCHED),
        # The end of an epoch: a step for the leftover window, then the validation.
        (J.BATCHES_OVER, (leftover,), (O.UNSCALE,), P.STEP_BEGIN),
        (J.BATCHES_OVER, (F.SKIP_VALID,), (O.MEASURE,), P.EPOCH_END),
        (J.BATCHES_OVER, (validated,), (O.MEASURE,), P.EPOCH_END),
        (J.BATCHES_OVER, (has_valid,), (O.OPEN_VALID,), P.VALID_BEGIN),
        (J.BATCHES_OVER, (), (O.MEASURE,), P.EPOCH_END),
        # A validation, at the end of an epoch or in the middle of it.
        (P.VALID_BEGIN, (F.STOP_VALID,), (O.MEASURE_VALID,), P.VALID_END),
        (P.VALID_BEGIN, (), (O.FETCH_VALID,), J.VALID_FETCHED),
        (J.VALID_FETCHED, (exhausted,), (O.MEASURE_VALID,), P.VALID_END),
        (J.VALID_FETCHED, (), (), P.VALID_BATCH_BEGIN),
        (P.VALID_BATCH_BEGIN, (), (O.EVALUATE,), P.VALID_BATCH_END),
        (P.VALID_BATCH_END, (F.SUSPEND,), (O.ABANDON,), P.SUSPEND),
        (P.VALID_BATCH_END, (F.STOP_VALID,), (O.MEASURE_VALID,), P.VALID_END),
        (P.VALID_BATCH_END, (), (O.FETCH_VALID,), J.VALID_FETCHED),
        (J.VALID_ABANDONED, (), (O.OPEN_VALID,), P.VALID_BEGIN),
        (P.VALID_END, (F.SUSPEND,), (), P.SUSPEND),
        (P.VALID_END, (batches_over,), (O.MEASURE,), P.EPOCH_END),
        (P.VALID_END, (F.STOP_EPOCH | F.STOP_TRAINING,), (), J.BATCHES_OVER),
        (P.VALID_END, (steps_reached,), (), J.BATCHES_OVER),
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
        # The final phases: no way on.
    ]
    return tuple(Edge(*row) for row in rows)


TABLE = _table()

ROWS: Mapping[Place, tuple[Edge, ...]] = {
    place: tuple(edge for edge in TABLE if edge.source is place) for place in (*Phase, *Junction)
}
"""The rows of each place, in the order in which they are tried. The final phases and RESUMED have none."""

SETTLED: Mapping[Place, Mapping[Term, bool]] = {
    Phase.EPOCH_BEGIN: {draining: False},
    Phase.BATCH_BEGIN: {draining: False},
    Phase.LOSS_BEGIN: {draining: False},
    Phase.LOSS_END: {draining: False},
    Phase.BACKWARD_END: {draining: False},
    Junction.BATCHES_OVER: {draining: True},
}
"""What is known of the counters at a place, and stays so until another one of these places is reached."""


# ------------------------------------------------------- what operations and arrivals do to counters


def _fetched(at: Counters, outcome: Outcome) -> None:
    at.exhausted = outcome is None
    if isinstance(outcome, int):
        at.fetched = outcome


def _backward(at: Counters, outcome: Outcome) -> None:
    at.pending += 1


def _stepped(at: Counters, outcome: Outcome) -> None:
    at.pending = 0  # also when a gradient scaler held the step back: the window is used up
    if outcome:
        at.step += 1
        if at.batches_over:  # weights that a validation after the last batch has not seen
            at.validated_at = min(at.validated_at, at.iteration - 1)


def _zeroed(at: Counters, outcome: Outcome) -> None:
    at.pending = 0


AFTER: Mapping[Operation, Effect] = {
    Operation.FETCH: _fetched,
    Operation.FETCH_VALID: _fetched,
    Operation.BACKWARD: _backward,
    Operation.STEP: _stepped,
    Operation.ZERO: _zeroed,
}
"""What an operation with this outcome does to the counters. Those not named here do nothing to them."""


def _epoch_begins(at: Counters, _: Outcome) -> None:
    at.batch = 0
    at.batches_over = False


def _batch_ends(at: Counters, _: Outcome) -> None:
    at.batch += 1
    at.iteration += 1
    at.samples += at.fetched


def _batches_are_over(at: Counters, _: Outcome) -> None:
    at.batches_over = True


def _validation_begins(at: Counters, _: Outcome) -> None:
    at.valid_batch = 0


def _valid_batch_ends(at: Counters, _: Outcome) -> None:
    at.valid_batch += 1


def _validation_ends(at: Counters, _: Outcome) -> None:
    at.validated_at = at.iteration


def _epoch_ends(at: Counters, _: Outcome) -> None:
    at.epoch += 1


def _resumed(at: Counters, _: Outcome) -> None:
    at.resume_at = None


ON_ENTRY: Mapping[Place, Effect] = {
    Phase.EPOCH_BEGIN: _epoch_begins,
    Phase.BATCH_END: _batch_ends,
    Junction.BATCHES_OVER: _batches_are_over,
    Phase.VALID_BEGIN: _validation_begins,
    Phase.VALID_BATCH_END: _valid_batch_ends,
    Phase.VALID_END: _validation_ends,
    Phase.EPOCH_END: _epoch_ends,
    Junction.RESUMED: _resumed,
}
"""What arriving somewhere does to the counters."""


@functools.cache  # one function for one place, so that effects can be compared
def _suspended_after(place: Place) -> Effect:
    resume_at = Junction.VALID_ABANDONED if place is Phase.VALID_BATCH_END else place

    def suspended(at: Counters, _: Outcome) -> None:
        at.resume_at = resume_at

    return suspended


def effects(edge: Edge) -> Iterator[tuple[Operation | None, Effect | None]]:
    """What crossing the edge does to the counters, in order: with each operation, and on arriving."""
    for operation in edge.operations:
        yield operation, AFTER.get(operation)
    if edge.target is Phase.SUSPEND:
        yield None, _suspended_after(edge.source)
    if edge.target in ON_ENTRY:
        yield None, ON_ENTRY[edge.target]


def falling(edge: Edge) -> Flag:
    """The flags that are lowered when this edge is crossed.

    Flags of a batch fall on leaving BATCH_END and when the batches are over, so that one raised for
    a leftover window does not reach into the next epoch.
    """
    flags = Flag.NONE
    if edge.source is Phase.BATCH_END or edge.target is Junction.BATCHES_OVER:
        flags |= BATCH_FLAGS
    if edge.target is Phase.EPOCH_BEGIN:
        flags |= EPOCH_FLAGS
    if edge.target is Phase.VALID_END:
        flags |= VALID_FLAGS
    if edge.operations == (Operation.ABANDON,):
        flags |= Flag.STOP_VALID  # or the validation would be over as soon as it begins anew
    return flags


# --------------------------------------------------------------------------- walking on the table


def holds(guard: Iterable[Term], flags: Flag, at: Counters) -> bool:
    return all(bool(term & flags) if isinstance(term, Flag) else term(at) for term in guard)


def choose(place: Place, flags: Flag, at: Counters) -> Edge:
    """The edge to cross from `place`: the first row whose guard holds.

    Raises:
        ValueError: `place` is final.
    """
    for edge in ROWS[place]:
        if holds(edge.guard, flags, at):
            return edge
    raise ValueError(f"there is no way on from {place_name(place)}")


def advance(state: State, edge: Edge, outcomes: Sequence[Outcome] = ()) -> State:
    """The state after crossing the edge, when its operations answered `outcomes`, in order.

    At a junction the phase of the state is the one before it, so go on with `choose(edge.target, …)`.
    RESUMED stands for the place where the training was suspended. The facts are gone: they were
    measured somewhere else.
    """
    at = counters_of(state)
    measured = iter(outcomes)
    after = state
    for operation, effect in effects(edge):
        outcome = next(measured, None) if operation else None
        if effect:
            effect(at, outcome)
        if operation in MEASURES and isinstance(outcome, Mapping):
            after = with_metrics(after, operation, outcome)
    place = arrived_at(edge, state.resume_at)
    phase = place if isinstance(place, Phase) else state.phase
    return state_at(phase, at, state.flags & ~falling(edge), NO_FACTS, after)


def arrived_at(edge: Edge, resume_at: Place | None) -> Place:
    """The target of the edge; RESUMED stands for the place where the training was suspended."""
    if edge.target is not Junction.RESUMED:
        return edge.target
    assert resume_at is not None, "only a guard that saw where to resume leads here"
    return resume_at


def with_metrics(state: State, operation: Operation, measured: Mapping[str, float]) -> State:
    """The state with what a validation or an epoch measured.

    At the end of an epoch the metrics of a validation count only if it was in this epoch: whoever
    monitors valid_loss must not take last epoch's for a new one.
    """
    if operation is Operation.MEASURE_VALID:
        return attrs.evolve(state, metrics=Metrics({**state.metrics, **measured}))
    in_this_epoch = state.validated_at > state.iteration - state.batch or state.validated_at == state.iteration
    of_this_epoch = {
        name: value for name, value in state.metrics.items() if in_this_epoch and name.startswith("valid_")
    }
    metrics = Metrics({**measured, **of_this_epoch})
    return attrs.evolve(state, metrics=metrics, history=(*state.history, metrics))


# ------------------------------------------------------------------------- questions about the table


def reads(place: Place) -> Flag:
    """The flags that some guard at this place reads."""
    flags = Flag.NONE
    for edge in ROWS[place]:
        for term in edge.guard:
            flags |= term if isinstance(term, Flag) else Flag.NONE
    return flags


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


def term_name(term: Term) -> str:
    if isinstance(term, Flag):
        return " | ".join(str(flag.name) for flag in term)
    return term.__name__.replace("_", " ")


def place_name(place: Place) -> str:
    return f"({place.name})" if isinstance(place, Junction) else place.name
