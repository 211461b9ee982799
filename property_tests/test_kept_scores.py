"""Any position of a check: the weights that are kept for a score have it when they are measured again."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, evaluate, on, run, start
from fsm_train.callbacks import accumulate, ema, keeping, monitoring, restore_best, validate_every


@attrs.frozen
class Course:
    """Where validations are, and what else changes weights.

    Attributes:
        batches, epochs: of the training.
        every: steps from one validation to the next.
        at_the_end: whether epochs end with a validation.
        window: batches of a step.
        average: whether an average is validated and trained along.
        lr: so large that the loss does not only fall.
    """

    batches: int
    epochs: int
    every: int
    at_the_end: bool
    window: int
    average: bool
    lr: float


COURSES = st.builds(
    Course,
    batches=st.integers(2, 6),
    epochs=st.integers(1, 3),
    every=st.integers(1, 3),
    at_the_end=st.booleans(),
    window=st.integers(1, 3),
    average=st.booleans(),
    lr=st.sampled_from([0.05, 0.3, 0.9]),
)


@on(Phase.EPOCH_BEGIN)
def not_at_the_end(state: State) -> Transition:
    return Transition(flags=Flag.SKIP_VALID)


def check_kept_score(course: Course) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    data = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(course.batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr=course.lr)
    work = Supervised(model, optimizer, nn.MSELoss(), data, data[:1])
    measured = []

    @on(Phase.VALID_END)
    def note(state: State) -> None:
        measured.append(state.metrics["valid_loss"])

    callbacks: list[Callback[Any]] = [validate_every(steps=course.every), restore_best(), note]
    callbacks += [] if course.at_the_end else [not_at_the_end]
    callbacks += [accumulate(course.window)] if course.window > 1 else []
    callbacks += [ema(0.5)] if course.average else []
    run(start(work, epochs=course.epochs), callbacks)

    if measured:
        assert evaluate(work)["valid_loss"] == min(measured)


@settings(deadline=None, max_examples=30)
@given(course=COURSES)
def test_kept_score_is_the_score_measured_again(course: Course) -> None:
    """To the last bit, wherever the validation was: within an epoch or a window, with an average or without."""
    check_kept_score(course)


def test_weights_of_the_end_of_the_epoch_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law has teeth: a copy that is made at the end of the epoch breaks it."""
    course = Course(batches=6, epochs=2, every=5, at_the_end=False, window=1, average=False, lr=0.3)
    check_kept_score(course)
    monkeypatch.setattr(keeping, "checked_at", lambda monitor: (Phase.EPOCH_END,))
    monkeypatch.setattr(monitoring, "_seen_before", lambda state, monitor: False)
    with pytest.raises(AssertionError):
        check_kept_score(course)
