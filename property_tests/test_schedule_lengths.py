"""Any plan: by="training" ends exactly where it ends, and a schedule is said if and only if its length is another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from fsm_train import Callback, Phase, State, Supervised, Workload, on, run, start
from fsm_train.callbacks import accumulate, schedule, scheduling, torch_scheduler
from fsm_train.core import planned
from fsm_train.core.planned import TOLERANCE, schedule_notes
from fsm_train.schedules import absolute, cosine, linear, polynomial
from fsm_train.worlds.scripted import Scripted

Every = int | Mapping[int, int]


@attrs.frozen
class Course:
    """A plan, and how many batches its steps have.

    Attributes:
        batches: of an epoch.
        epochs, max_steps: of the plan; one of them at least.
        every: batches of a step, or those from each epoch on.
    """

    batches: int
    epochs: int | None
    max_steps: int | None
    every: Every

    def callbacks(self) -> list[Callback[Any]]:
        return [] if self.every == 1 else [accumulate(self.every)]

    def start(self, workload: Workload) -> State:
        return start(workload, epochs=self.epochs, max_steps=self.max_steps)


EVERY = st.one_of(st.integers(1, 4), st.builds(lambda a, b, at: {0: a, at: b}, *[st.integers(1, 4)] * 2, st.just(2)))
COURSES = st.builds(
    Course, st.integers(1, 7), st.integers(1, 5), st.none() | st.integers(1, 30), EVERY
) | st.builds(Course, st.integers(1, 7), st.none(), st.integers(1, 30), EVERY)  # fmt: skip


def steps_of(course: Course) -> list[Fraction]:
    """How much of the plan was finished before each step, by the batches and the steps that were taken."""
    finished: list[Fraction] = []
    before = [0]  # batches before the step under way

    @on(Phase.STEP_END, Phase.EPOCH_END)
    def look(state: State) -> None:
        if state.phase is Phase.STEP_END:
            shares = [Fraction(state.step - 1, course.max_steps)] if course.max_steps else []
            if course.epochs:
                shares.append(Fraction(before[0], course.epochs * course.batches))
            finished.append(max(shares))
        before[0] = state.iteration + (state.phase is Phase.STEP_END and not state.draining)

    run(course.start(Scripted(batches=course.batches)), [*course.callbacks(), look])
    return finished


# ------------------------------------------------------------------------------- by="training"


def ends_with_the_plan(course: Course) -> None:
    """Each step is given the share that was finished before it, and when the training ends all of it is."""
    seen: list[float] = []
    ends: list[Any] = []

    @on(Phase.STEP_BEGIN, Phase.TRAIN_END, order=100)
    def look(state: State) -> None:
        if state.phase is Phase.TRAIN_END:
            ends.append(scheduling.finished_share(state))

    @on(Phase.STEP_END)
    def used(state: State) -> None:
        seen.append(state.hyper["lr"])  # type: ignore[arg-type]

    stretched = schedule(lr=absolute(lambda share: share), by="training")
    run(course.start(Scripted(batches=course.batches)), [*course.callbacks(), stretched, look, used])

    assert seen == [float(share) for share in steps_of(course)]
    assert [Fraction(*share) for share in ends] == [1]


@given(COURSES)
def test_a_schedule_by_training_ends_exactly_with_the_plan(course: Course) -> None:
    """For any batches, epochs, steps and accumulation: it begins at 0, and is at its end when the training ends."""
    ends_with_the_plan(course)


def window_counted(state: State) -> tuple[int, int]:
    """The batches of the step under way count as finished."""
    done, whole = scheduling_finished_share(state)
    return done + (state.phase is Phase.STEP_BEGIN), whole


def steps_for_epochs(state: State) -> tuple[int, int]:
    """Steps are counted where batches are meant."""
    whole = scheduling_finished_share(state)[1]
    return min(state.step, whole), whole


scheduling_finished_share = scheduling.finished_share


@pytest.mark.parametrize(
    ("bug", "course"),
    [
        (window_counted, Course(4, 2, None, 1)),
        (steps_for_epochs, Course(4, 2, None, 2)),
        (lambda state: (state.epoch, state.plan.epochs), Course(4, 2, None, 1)),
    ],
)
def test_a_share_that_is_wrong_is_caught(bug: Any, course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law has teeth, and holds without the bug."""
    ends_with_the_plan(course)
    monkeypatch.setattr(scheduling, "finished_share", bug)

    with pytest.raises(AssertionError):
        ends_with_the_plan(course)


# --------------------------------------------------------------------------- what does not fit is said

KINDS: Mapping[str, Callable[[int], Callback[Any]]] = {
    "cosine": lambda length: schedule(lr=cosine(length)),
    "a fall": lambda length: schedule(lr=linear(1.0, 0.5, length)),
    "values": lambda length: schedule(lr=absolute(polynomial(length))),
    "torch's cosine": lambda length: torch_scheduler(lambda o: lr_scheduler.CosineAnnealingLR(o, length)),
    "torch's one cycle": lambda length: torch_scheduler(
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=length, cycle_momentum=False)
    ),
}


def supervised(batches: int) -> Supervised:
    model = nn.Linear(1, 1)
    data = [(torch.ones(1, 1), torch.ones(1, 1))] * batches
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), data)


def said_if_and_only_if_it_does_not_fit(course: Course, kind: str, length: int) -> None:
    steps = len(steps_of(course))
    work = supervised(course.batches)
    notes = schedule_notes([KINDS[kind](length), *course.callbacks()], course.start(work), work)

    fits = abs(length - steps) <= max(1.0, TOLERANCE * steps)
    assert (notes == []) is fits
    assert fits or (f" {length} steps" in notes[0] and f"the plan has {steps} " in notes[0])


@given(COURSES, st.sampled_from(sorted(KINDS)), st.integers(1, 40))
def test_a_length_is_said_if_and_only_if_it_is_not_that_of_the_plan(course: Course, kind: str, length: int) -> None:
    """With both numbers: the schedule's, and the steps that the training then takes."""
    said_if_and_only_if_it_does_not_fit(course, kind, length)


def accumulation_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = planned._settings
    patch.setattr(
        planned, "_settings", lambda c, factory, name: () if factory == "accumulate" else right(c, factory, name)
    )


def last_windows_are_dropped(patch: pytest.MonkeyPatch) -> None:
    right = planned._settings
    patch.setattr(planned, "_settings", lambda c, f, name: [True] if name == "drop_last" else right(c, f, name))


def only_long_ones_are_said(patch: pytest.MonkeyPatch) -> None:
    right = planned._misfit
    patch.setattr(planned, "_misfit", lambda schedule, span, plan: right(schedule, (span[0], plan), plan))


def torch_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planned, "_torch_lengths", lambda callback, workload: ())


@pytest.mark.parametrize(
    ("bug", "course", "kind", "length"),
    [
        (accumulation_is_forgotten, Course(6, 4, None, 3), "cosine", 24),
        (last_windows_are_dropped, Course(7, 4, None, 3), "cosine", 12),
        (only_long_ones_are_said, Course(5, 4, None, 1), "cosine", 4),
        (torch_is_not_asked, Course(5, 4, None, 1), "torch's one cycle", 40),
    ],
)
def test_a_length_that_is_wrong_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], course: Course, kind: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law has teeth, and holds without the bug."""
    said_if_and_only_if_it_does_not_fit(course, kind, length)
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        said_if_and_only_if_it_does_not_fit(course, kind, length)
