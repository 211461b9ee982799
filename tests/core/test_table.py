"""The table as a person reads it, and the little that its functions refuse."""

from __future__ import annotations

import pytest

from fsm_train import TABLE, Flag, Operation, Phase
from fsm_train.core.diagram import text
from fsm_train.core.fold import choose
from fsm_train.core.state import Draft, Plan
from fsm_train.core.table import AFTER


def test_table_prints_a_row_a_line() -> None:
    """Source, guard, operations and target can be read, junctions in brackets."""
    lines = text().splitlines()

    assert len(lines) == len(TABLE) + 1
    assert lines[1].split() == ["READY", "-", "prepare", "SETUP"]
    assert "STEP_BEGIN         batches over and SKIP_STEP         zero             (BATCHES_OVER)" in lines


def test_there_is_no_way_on_from_a_final_phase() -> None:
    """Asking for one is an error that names the phase."""
    with pytest.raises(ValueError, match="there is no way on from DONE"):
        choose(Phase.DONE, Flag.NONE, Draft(Phase.DONE, Plan(epochs=1)))


@pytest.mark.parametrize("operation", [Operation.MEASURE_VALID, Operation.MEASURE, Operation.FINISH])
def test_an_operation_that_measures_nothing_leaves_the_numbers_as_they_are(operation: Operation) -> None:
    """A workload of one's own need not answer."""
    at = Draft(Phase.VALID_BEGIN, Plan(epochs=1), metrics={"train_loss": 1.0}, hyper={"lr": 0.5})
    AFTER[operation](at, None)
    assert (at.metrics, at.hyper, len(at.history)) == ({"train_loss": 1.0}, {"lr": 0.5}, 0)
