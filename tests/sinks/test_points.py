"""Which numbers a training that resumes has been told already."""

from __future__ import annotations

from typing import Any

import pytest

from fsm_train import Phase
from fsm_train.sinks.points import Point, is_before
from fsm_train.testing import at

END, VALID, BATCH, STEP = Phase.EPOCH_END, Phase.VALID_END, Phase.BATCH_END, Phase.STEP_BEGIN
IN_EPOCH = {"epoch": 1, "batch": 2, "iteration": 6, "step": 6}  # the second epoch, two of its batches are done
AFTER_BATCHES = {**IN_EPOCH, "batch": 4, "iteration": 8, "step": 8, "batches_over": True}


@pytest.mark.parametrize(
    ("point", "resumed", "before"),
    [
        ((END, 1, 4, 4), IN_EPOCH, True),
        ((END, 2, 6, 6), IN_EPOCH, False),
        ((END, 2, 8, 8), AFTER_BATCHES, False),
        ((END, 2, 8, 8), {**AFTER_BATCHES, "epoch": 2}, True),
        ((BATCH, 2, 5, 5), IN_EPOCH, True),
        ((BATCH, 2, 6, 6), IN_EPOCH, True),
        ((BATCH, 2, 6, 7), IN_EPOCH, False),
        ((BATCH, 2, 7, 6), IN_EPOCH, False),  # of the first player of a batch, which takes its step before the others
        ((STEP, 2, 5, 5), IN_EPOCH, True),
        ((STEP, 2, 6, 6), IN_EPOCH, False),
        ((STEP, 2, 8, 8), AFTER_BATCHES, True),  # of a leftover window
        ((VALID, 2, 5, 5), IN_EPOCH, True),
        ((VALID, 2, 6, 6), IN_EPOCH, False),
        ((VALID, 2, 6, 6), {**IN_EPOCH, "validated_at": 6}, True),
    ],
)
def test_a_number_is_of_before_or_after(
    point: tuple[Phase, int, int, int], resumed: dict[str, Any], before: bool
) -> None:
    """By the place at which it was measured; where that is the place at which it resumes, by what is done there."""
    assert is_before(Point(*point, {}), at(Phase.SUSPEND, **resumed)) is before
