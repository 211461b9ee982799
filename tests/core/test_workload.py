"""What a workload answers that says nothing of itself."""

from __future__ import annotations

from fsm_train.core.workload import Workload


class Bare(Workload):
    """Defines nothing."""


def test_workload_says_nothing_of_ranks_by_default() -> None:
    """One that was written before there were ranks can be one of several."""
    work = Bare()  # type: ignore[abstract]

    assert (work.reductions, work.metric_weights) == ({}, {})
    assert (work.known_sizes, work.known_valid_sizes, work.shares_facts) == (None, None, False)
    work.set_rank_weight(0.5)
    assert vars(work) == {}


def test_workload_has_no_turns_by_default() -> None:
    """And says neither what it will measure nor how much data there are."""
    work = Bare()  # type: ignore[abstract]

    assert work.players == {}
    assert (work.metric_names, work.batches_per_epoch, work.model_parts) == (None, None, ())
