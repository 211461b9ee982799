"""What operations and arrivals do to the state.

Rule of this file: an effect is a function that writes to a draft alone. Which of them happen, `table.py` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .phase import Junction, Operation, Phase, Place
from .state import Draft
from .values import Metrics, frozen_map, same_numbers

Effect = Callable[[Draft, "Outcome"], None]
Outcome = object
"""What an operation answers: a fetch the weight or None, a step whether it was taken, others metrics or numbers."""


def _fetched(at: Draft, outcome: Outcome) -> None:
    at.exhausted = outcome is None
    if isinstance(outcome, (int, float)):
        at.fetched = outcome


def _valid_fetched(at: Draft, outcome: Outcome) -> None:
    _fetched(at, outcome)
    at.valid_batch += outcome == 0  # it is passed over, and over with that


def _backward(at: Draft, outcome: Outcome) -> None:
    at.pending += 1


def _stepped(at: Draft, outcome: Outcome) -> None:
    at.pending = 0  # also when a gradient scaler held the step back: the window is used up
    if outcome:
        at.step += 1
        at.step_hyper = at.hyper
        if at.players.names:
            at.players = at.players.stepped()
        if at.batches_over:  # weights that a validation after the last batch has not seen
            at.validated_at = min(at.validated_at, at.iteration - 1)


def _zeroed(at: Draft, outcome: Outcome) -> None:
    at.pending = 0


def _valid_measured(at: Draft, outcome: Outcome) -> None:
    """The metrics of a validation are those that it measured. One that was stopped before its first batch has none."""
    if isinstance(outcome, Mapping):
        others = {name: value for name, value in at.metrics.items() if not name.startswith("valid_")}
        at.metrics = Metrics({**others, **outcome})
        if all(name.startswith("train_") for name in outcome):  # which a log repeats
            return
    at.validated_at = at.iteration


def _epoch_measured(at: Draft, outcome: Outcome) -> None:
    """The metrics of a validation count only if it was in this epoch: last epoch's valid_loss is no new one."""
    if isinstance(outcome, (dict, Mapping)):
        of_validation = {name: value for name, value in at.metrics.items() if name.startswith("valid_")}
        if of_validation and not _validated_in_this_epoch(at):
            of_validation = {}
        at.metrics = Metrics({**outcome, **of_validation})
        at.history += (at.metrics,)


def _validated_in_this_epoch(at: Draft) -> bool:
    return at.validated_at > at.iteration - at.batch or (
        at.validated_at == at.iteration and not same_numbers(at.metrics, (at.history or ({},))[-1])
    )  # in an epoch without a batch, the metrics of the last one are still there if nothing was validated


def _finished(at: Draft, outcome: Outcome) -> None:
    if isinstance(outcome, Mapping):
        at.hyper = frozen_map(outcome)


AFTER: Mapping[Operation, Effect] = {
    Operation.FETCH: _fetched,
    Operation.FETCH_VALID: _valid_fetched,
    Operation.BACKWARD: _backward,
    Operation.STEP: _stepped,
    Operation.ZERO: _zeroed,
    Operation.MEASURE_VALID: _valid_measured,
    Operation.MEASURE: _epoch_measured,
    Operation.FINISH: _finished,
}
"""What an operation with this outcome does to the state. Those that are not named here do nothing to it."""


def _epoch_begins(at: Draft, _: Outcome) -> None:
    at.batch = 0
    at.batches_over = False
    if at.players.names:
        at.players = at.players.outside_epochs()


def _turn_begins(at: Draft, _: Outcome) -> None:
    players = at.players
    if at.batches_over:
        at.players, at.pending = players.draining(at.pending)
        return
    if players.coming:  # a validation may have come in between
        at.fetched, at.exhausted = players.fetched, False
    at.players, at.pending = players.next_turn(at.iteration, at.pending, at.fetched)


def _turn_ends(at: Draft, _: Outcome) -> None:
    """A batch is over with its last turn; without players it is its only one."""
    if not at.players.coming:
        at.batch += 1
        at.iteration += 1
        at.samples += at.fetched


def _batches_are_over(at: Draft, outcome: Outcome) -> None:
    """A batch that is left between its turns is over too."""
    at.batches_over = True
    if at.players.coming:
        at.fetched = at.players.fetched
        at.players = at.players.batch_over()
        _turn_ends(at, outcome)


def _validation_begins(at: Draft, _: Outcome) -> None:
    at.valid_batch = 0


def _valid_batch_ends(at: Draft, _: Outcome) -> None:
    at.valid_batch += 1


def _epoch_ends(at: Draft, _: Outcome) -> None:
    at.epoch += 1
    if at.players.names:
        at.players = at.players.outside_epochs()


def _resumed(at: Draft, _: Outcome) -> None:
    at.resume_at = None


ON_ENTRY: Mapping[Place, Effect] = {
    Junction.NO_EPOCH: _epoch_begins,  # a training that is extended has the counters of the last epoch still
    Phase.EPOCH_BEGIN: _epoch_begins,
    Junction.NEXT_TURN: _turn_begins,
    Phase.BATCH_END: _turn_ends,
    Junction.BATCHES_OVER: _batches_are_over,
    Phase.VALID_BEGIN: _validation_begins,
    Phase.VALID_BATCH_END: _valid_batch_ends,
    Phase.EPOCH_END: _epoch_ends,
    Junction.RESUMED: _resumed,
}
"""What arriving at a place does to the state."""
