"""A log in words and small pictures, in its corners."""

from __future__ import annotations

import math
from pathlib import Path

from fsm_train.eventlog.render import curve, summarize

from .log_files import forged, logged


def test_what_is_not_finite_stands_out_in_a_curve() -> None:
    """It has no height, and takes none from the others."""
    assert curve([0.0, math.nan, 1.0, math.inf]) == "▁!█!"
    assert curve([math.nan]) == "!"


def test_an_end_that_nothing_explains_is_told_as_it_is(tmp_path: Path) -> None:
    """A log that says done, before its plan is fulfilled and without a reason, is not explained away."""
    path = tmp_path / "run.jsonl"
    logged(path, [], epochs=2)
    forged(path, lambda lines: lines[-1].update(epoch=1))

    assert summarize(path).ending == "done after 1 epoch and 8 steps"
