"""The predicates of the table's guards.

Rule of this file: a predicate is a pure function of the state, and says nothing of where the machine goes.
"""

from __future__ import annotations

from .state import Draft


def resuming(at: Draft) -> bool:
    return at.resume_at is not None


def continuing(at: Draft) -> bool:
    return at.iteration > 0


def failed_before(at: Draft) -> bool:
    return at.error != ""


def epochs_reached(at: Draft) -> bool:
    return at.plan.epochs is not None and at.epoch >= at.plan.epochs


def steps_reached(at: Draft) -> bool:
    return at.plan.max_steps is not None and at.step >= at.plan.max_steps


def exhausted(at: Draft) -> bool:
    return at.exhausted


def weighs_nothing(at: Draft) -> bool:
    return at.fetched == 0


def batches_over(at: Draft) -> bool:
    return at.batches_over


def leftover(at: Draft) -> bool:
    return at.pending > 0


def taking_turns(at: Draft) -> bool:
    return bool(at.players.names)


def turns_left(at: Draft) -> bool:
    """Whether another player has its turn at the batch under way."""
    return bool(at.players.coming)


def leftover_of_player(at: Draft) -> bool:
    """Whether some player has a window pending."""
    return bool(at.players.leftover(at.pending))


def batches_and_steps_over(at: Draft) -> bool:
    """Whether a window that a player left over would be stepped beyond the plan."""
    return at.batches_over and steps_reached(at)


def has_valid(at: Draft) -> bool:
    return at.has_valid


def validated(at: Draft) -> bool:
    return at.validated_at == at.iteration


def before_an_epoch(at: Draft) -> bool:
    """Whether no epoch has begun yet in this training, or in what it was extended by."""
    return at.batch == 0 and not at.batches_over and not at.players.player
