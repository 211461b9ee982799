"""The epoch under way, as progress and trackers remember it."""

from __future__ import annotations

from fsm_train import Phase
from fsm_train.sinks.current_epoch import CurrentEpoch
from fsm_train.testing import at

BEGIN = at(Phase.EPOCH_BEGIN, epoch=2, iteration=6, step=6, lr=0.1)


def test_an_epoch_has_the_rate_of_its_last_step() -> None:
    """Not one that a callback set after it; an epoch without a step has the rate it began with."""
    epoch = CurrentEpoch.at_start(at(Phase.READY, lr=0.5)).after(BEGIN)
    stepped = at(Phase.EPOCH_END, epoch=3, iteration=9, step=9, lr=0.001, step_hyper={"lr": 0.01})
    idle = at(Phase.EPOCH_END, epoch=3, iteration=9, step=6, lr=0.001, step_hyper={"lr": 0.2})

    assert epoch.hyper_used(stepped)["lr"] == 0.01
    assert epoch.hyper_used(idle)["lr"] == 0.1


def test_an_epoch_has_a_number_from_its_begin_to_its_end() -> None:
    """Phases in between change nothing."""
    epoch = CurrentEpoch.at_start(at(Phase.READY))

    assert epoch.index is None
    assert epoch.after(BEGIN).after(at(Phase.BATCH_END, epoch=2)).index == 2
    assert epoch.after(BEGIN).after(at(Phase.EPOCH_END, epoch=3)).index is None


def test_an_epoch_that_goes_on_may_have_steps_of_a_call_before() -> None:
    """So the hyper-parameters of the last step count, also if none follows."""
    left = at(Phase.READY, epoch=2, batch=1, iteration=7, step=7, resume_at=Phase.BATCH_END, lr=0.001)
    end = at(Phase.EPOCH_END, epoch=3, iteration=7, step=7, lr=0.001, step_hyper={"lr": 0.01})

    assert CurrentEpoch.at_start(left).index == 2
    assert CurrentEpoch.at_start(left).hyper_used(end)["lr"] == 0.01
    assert CurrentEpoch.at_start(at(Phase.READY, epoch=3, resume_at=Phase.EPOCH_END)).index is None
