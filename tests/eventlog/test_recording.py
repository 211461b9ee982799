"""What the world says is noted, also where several operations are carried out in one go."""

from __future__ import annotations

from fsm_train import Operation, Scripted
from fsm_train.eventlog.writing import Recording

STEP = (Operation.BACKWARD, Operation.STEP)


class InOneGo(Scripted):
    """Carries out any sequence in one go, and holds its steps back."""

    def fused(self, operations: tuple[Operation, ...]) -> object:
        return lambda: False


def test_step_held_back_in_one_go_is_noted() -> None:
    """A whole step that was held back stands in the course, as a step that is taken on its own does."""
    recording = Recording(InOneGo())
    in_one_go = recording.fused(STEP)
    assert in_one_go is not None

    in_one_go()

    assert recording.take() == [["held back", 1]]


def test_what_is_to_be_noted_is_done_one_by_one() -> None:
    """A sequence with a fetch in it, or one that the workload has no implementation for, is not in one go."""
    assert Recording(InOneGo()).fused((Operation.FETCH,)) is None
    assert Recording(Scripted()).fused(STEP) is None
