"""What the world says is noted, also where several operations are carried out in one go."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsm_train import EventLog, LogError, Operation, Phase, Recorded, Scripted, State, on, run, start
from fsm_train.eventlog.course import NO_COURSE, CourseRecorder, course_of
from fsm_train.eventlog.rerun import Rerun

from .log_files import lines_of, logged, workload

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
    recording = CourseRecorder(InOneGo())
    in_one_go = recording.fused(STEP)
    assert in_one_go is not None

    assert in_one_go() is True
    assert course_of(recording.take_course()) == NO_COURSE
    assert in_one_go() is False
    assert course_of(recording.take_course()) == [["held back", 1]]


def test_what_is_to_be_noted_is_done_one_by_one() -> None:
    """A sequence with a fetch in it, or one that the workload has no implementation for, is not in one go."""
    assert CourseRecorder(InOneGo()).fused((Operation.FETCH,)) is None
    assert CourseRecorder(Scripted()).fused(STEP) is None


def test_a_step_held_back_stands_in_the_line_after_it(tmp_path: Path) -> None:
    """The course of a log has it in its place among the batches."""
    path = tmp_path / "run.jsonl"
    work = Scripted(batches=2, stepped=lambda state: state.batch == 1)
    run(start(work, epochs=1), log=EventLog(path, phases=[Phase.BATCH_END]))

    courses = [line.get("course") for line in lines_of(path) if line["event"] == "batch_end"]

    assert courses == [[[32, 1], ["held back", 1]], [[32, 1]]]


def test_facts_are_read_from_the_line_of_their_phase(tmp_path: Path) -> None:
    """A recorded training that is watched at fewer phases than were logged passes over the other lines."""
    path = tmp_path / "run.jsonl"
    log = EventLog(path, phases=[Phase.LOSS_END, Phase.BATCH_END], facts=["loss"])
    run(start(workload(), epochs=1), log=log)
    losses: list[float] = []

    @on(Phase.BATCH_END, needs={"loss"})
    def collect(state: State) -> None:
        losses.append(state.facts["loss"])

    run(Recorded(path).start(), [collect])

    assert losses == [1.0, 1 / 2, 1 / 3, 1 / 4]


class _Refuses(Rerun):
    def compare(self, state: State, answers: object) -> None:
        raise LogError("this line cannot be compared")


def test_what_is_found_while_lines_are_compared_ends_a_rerun(tmp_path: Path) -> None:
    """The interpreter switches off a sink that raises, and would go on as if all agreed."""
    logged(tmp_path / "run.jsonl", [], epochs=1)
    recorded = Recorded(tmp_path / "run.jsonl")

    with pytest.raises(LogError, match="this line cannot be compared"):
        _Refuses(recorded, recorded.start(), [Phase.SETUP]).rerun([])
