"""Clipping, as data: that torch does it right is tested with the workload."""

from __future__ import annotations

import pytest

from fsm_train import ClipGradNorm, Phase, Scripted, Transition, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm
from fsm_train.testing import at, drive


def test_clipping_is_a_command_before_the_step() -> None:
    """The answer is one command, compared as a value; nothing is executed."""
    assert drive(clip_grad_norm(0.5), [at(Phase.STEP_BEGIN)]) == [Transition(commands=(ClipGradNorm(0.5, 2.0),))]


def test_clipping_is_once_a_step_with_accumulation() -> None:
    """Ten batches in windows of four are clipped three times: once each, the leftover included."""
    work = Scripted(batches=10)
    run(start(work, epochs=1), [clip_grad_norm(0.5), accumulate(4)])

    assert work.commands.count(ClipGradNorm(0.5)) == 3


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_norms_are_refused(max_norm: float) -> None:
    """A largest norm is a positive number."""
    with pytest.raises(ValueError, match="max_norm=.*: it must be a positive number"):
        clip_grad_norm(max_norm)
