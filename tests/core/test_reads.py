"""Which decisions are kept, and how many."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from fsm_train import Flag, Phase, Scripted, State, Transition, on, run, start
from fsm_train.commands import ClipGradNorm, UseScheduler
from fsm_train.core.merge import merged
from fsm_train.core.reads import MOST, kept_decision
from fsm_train.core.values import FrozenMap
from fsm_train.testing import at


def answered(answer: Transition) -> Any:
    """What is kept of this answer at the end of a batch."""

    @on(Phase.BATCH_END, reads=set())
    def callback(state: State) -> Transition:
        return answer

    state = attrs.evolve(at(Phase.BATCH_END, lr=0.1), memory=FrozenMap({"callback": None}))
    answers = [(callback, answer)]
    return kept_decision(state, [callback], answers, merged(state, answers, {"callback": 0}), lambda command: None)


@pytest.mark.parametrize(
    "answer",
    [
        Transition(hyper={"lr": 0.2}),
        Transition(flags=Flag.STOP_TRAINING, reason="enough"),
        Transition(commands=(UseScheduler("scheduler", lambda optimizer: None),)),
    ],
)
def test_what_may_come_out_otherwise_is_not_kept(answer: Transition) -> None:
    """A rate depends on the one that there is, the end has a reason, and a command may change the numbers."""
    assert answered(answer) is None


def test_what_comes_out_the_same_is_kept() -> None:
    """With what it adds."""
    kept = answered(Transition(flags=Flag.VALIDATE, commands=(ClipGradNorm(1.0),)))
    assert (kept.flags, kept.acts) == (Flag.VALIDATE, True)
    assert [command for command, _ in kept.commands] == [ClipGradNorm(1.0)]


def test_so_many_are_kept_at_one_place() -> None:
    """A callback that reads the epoch decides anew in each; who stops then is not kept, and stops."""

    @on(Phase.EPOCH_END, reads={"epoch"}, raises=Flag.STOP_TRAINING, sets=(), commands=())
    def enough(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING, reason="enough") if state.epoch > MOST + 3 else None

    final = run(start(Scripted(batches=1), epochs=2 * MOST), [enough])
    assert (final.epoch, final.reason) == (MOST + 4, "enough: enough")
