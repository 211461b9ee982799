"""What the world says is noted, also where several operations are carried out in one go."""

from __future__ import annotations

from fsm_train import Operation, Scripted
from fsm_train.eventlog.writer import Recording

STEP = (Operation.BACKWARD, Operation.STEP)


class InOneGo(Scripted):
    """Carries out any sequence in one go, and holds every second step back."""

    steps = 0

    def fused(self, operations: tuple[Operation, ...]) -> object:
        def step() -> bool:
            self.steps += 1
            return self.steps % 2 == 1

        return step


def test_step_held_back_in_one_go_is_noted() -> None:
    """A whole step that was held back stands in the course, as a step that is taken on its own does."""
    recording = Recording(InOneGo())
    in_one_go = recording.fused(STEP)
    assert in_one_go is not None

    assert in_one_go() is True
    assert recording.take() == []
    assert in_one_go() is False
    assert recording.take() == [["held back", 1]]


def test_what_is_to_be_noted_is_done_one_by_one() -> None:
    """A sequence with a fetch in it, or one that the workload has no implementation for, is not in one go."""
    assert Recording(InOneGo()).fused((Operation.FETCH,)) is None
    assert Recording(Scripted()).fused(STEP) is None
