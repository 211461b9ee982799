"""A callback on two ranks beside one process on the union of their batches: what is trained, and how it is compared.

A case says what the training takes: `make` gives the callbacks, with `images` the inputs have two dimensions, with
`broken` a target of rank 1 is NaN, and `differs` is the most that a weight may differ by, None for any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

from fsm_train import Callback, State, run, start
from fsm_train.testing import differences
from tests.diabetes_training import batches


def data_of(case: Any, rank: int | None) -> tuple[list[Any], list[Any]]:
    """Unequal batches to train with, the last window of which is left over, and to validate; None for the union."""
    train, valid = batches(8, 7, 6), batches(8, 5, skip=30)
    if case.images:
        train, valid = (
            [(inputs.unflatten(1, (1, 2, 5)), target) for inputs, target in data] for data in (train, valid)
        )
    if case.broken:
        target = train[1][1].clone()
        target[1] = math.nan  # of rank 1
        train[1] = train[1][0], target
    if rank is None:
        return train, valid
    of_train, of_valid = ([tuple(part[rank::2] for part in batch) for batch in data] for data in (train, valid))
    return of_train, of_valid


def last_state(case: Any, work: Any, rank: int | None) -> State:
    """What three epochs end with, without what is each rank's own."""
    given: list[Callback] = [each for each in case.make() if rank is not None or each.name != "parallel"]
    final = run(start(work, epochs=3, seed=0), given)
    return attrs.evolve(final, workload=None, elapsed=0.0, facts={}, memory={})


def check_as_union(case: Any, rank_0: Any, rank_1: Any, trained: Callable[[Any, int | None], Any]) -> None:
    """Compare the last state and the weights of two ranks with each other, and with those of one process."""
    (one, weights), (other, others) = rank_0, rank_1
    assert not list(differences(one, other))
    assert torch.equal(weights, others)

    if (most := case.differs) is not None:
        alone, union = trained(case, None)
        assert ended(one) == ended(alone)
        torch.testing.assert_close(weights, union, rtol=0, atol=most)
        assert dict(one.metrics) == pytest.approx(dict(alone.metrics), rel=10 * most)


def ended(state: State) -> Any:
    """Where and why a training ended, without the seconds that it took."""
    return state.phase, state.epoch, state.step, state.samples, re.sub(r"[\d.]+ seconds", "", str(state.reason))
