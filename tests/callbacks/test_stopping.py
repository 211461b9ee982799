"""Early stopping, on the curves where other libraries differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from fsm_train import Flag, Phase, on
from fsm_train.callbacks import early_stopping
from fsm_train.core.transition import Transition
from fsm_train.testing import at, drive, simulate

NAN, INF = math.nan, math.inf


def stopped_at(callback: Any, curve: list[float]) -> int | None:
    """The index of the check at which the callback stops, if it does."""
    answers = drive(callback, [at(Phase.VALID_END, valid_loss=value) for value in curve])
    return next((i for i, answer in enumerate(answers) if Flag.STOP_TRAINING in answer.flags), None)


def test_stop_names_its_reason() -> None:
    """The state that stops says which callback stopped it, and on what evidence."""
    final = simulate([early_stopping(patience=1)], valid_loss=[1.0, 1.1])

    assert final.reason == "early_stopping: valid_loss has not improved on 1.0 for 1 validation"


@pytest.mark.parametrize(
    ("settings", "curve", "index"),
    [
        # As Lightning and Keras do.
        ({"patience": 3}, [1.0] * 9, 3),
        ({"patience": 1}, [1.0] * 9, 1),
        ({"patience": 0}, [1.0] * 9, 1),
        ({"patience": 3, "min_delta": 0.08}, [1.0 - 0.05 * i for i in range(20)], None),
        ({"patience": 2, "min_delta": 0.2}, [1.0 - 0.05 * i for i in range(20)], 2),
        ({"patience": 2}, [3.0, 2.0, 2.5, 1.9, 2.0, 2.0], 5),
        ({"patience": 2, "mode": "max"}, [0.1, 0.5, 0.4, 0.5], 3),
        ({"patience": 2, "mode": "max", "min_delta": 0.1}, [0.1, 0.15, 0.19, 0.5], 2),
        # An improvement is strictly more than min_delta.
        ({"patience": 1, "min_delta": 0.5}, [2.0, 1.5], 1),
        ({"patience": 1, "min_delta": 0.5}, [2.0, 1.25], None),
        # What is not finite stops at once, or is waited for and never the best.
        ({"patience": 3}, [1.0, NAN], 1),
        ({"patience": 3}, [INF], 0),
        ({"patience": 3, "mode": "max"}, [-INF], 0),
        ({"patience": 3, "on_nonfinite": "wait"}, [NAN, 1.0, NAN, 0.5, NAN, NAN, NAN], 6),
        ({"patience": 2, "on_nonfinite": "wait"}, [NAN, NAN], 1),
        ({"patience": 2, "on_nonfinite": "wait", "mode": "max"}, [1.0, INF, INF], 2),
    ],
)
def test_it_stops_at_the_right_check(settings: dict[str, Any], curve: list[float], index: int | None) -> None:
    """The check at which it stops is the one of Lightning and Keras; NaN is never the best."""
    assert stopped_at(early_stopping(**settings), curve) == index


@pytest.mark.parametrize(
    ("settings", "curve", "reason"),
    [
        ({"patience": 1}, [NAN], "valid_loss is nan"),
        ({"patience": 1, "on_nonfinite": "wait"}, [NAN], "valid_loss was never finite for 1 validation"),
        (
            {"patience": 2, "min_delta": 0.5},
            [1 / 3, 0.3, 0.3],
            "valid_loss has not improved by more than 0.5 on 0.333333 for 2 validations",
        ),
    ],
)
def test_reasons_name_the_evidence(settings: dict[str, Any], curve: list[float], reason: str) -> None:
    """What was measured, and what it was measured against."""
    assert simulate([early_stopping(**settings)], valid_loss=curve).reason == f"early_stopping: {reason}"


def test_missing_monitor_lists_what_there_is() -> None:
    """A metric that will not be there is refused before the first batch, with those that will be and what to do."""
    with pytest.raises(
        LookupError,
        match="monitors 'valid_loss', which this training does not measure: there will be train_loss. A valid_… metric",
    ):
        simulate([early_stopping()], epochs=2)
    with pytest.raises(
        LookupError,
        match="monitors 'valid_acc', which this training does not measure: there will be train_loss, valid_loss$",
    ):
        simulate([early_stopping("valid_acc")], valid_loss=[1.0])


def test_epoch_without_validation_is_no_check() -> None:
    """An old value is not taken for a new one, and patience does not run out on it."""

    @on(Phase.EPOCH_BEGIN)
    def every_second_epoch(state: Any) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID) if state.epoch % 2 else None

    final = simulate([early_stopping(patience=2), every_second_epoch], epochs=7, valid_loss=[1.0, 2.0, 2.0])

    assert final.epoch == 5
    assert [sorted(metrics) for metrics in final.history[:2]] == [["train_loss", "valid_loss"], ["train_loss"]]


def test_evaluation_that_is_not_due_is_no_check() -> None:
    """Where all metrics are those of several evaluations, one that is not there was left out, and is waited for."""
    left_out = at(Phase.VALID_END, metrics={"valid_clean_loss": 1.0})
    measured = at(Phase.VALID_END, metrics={"valid_clean_loss": 1.0, "valid_rare_loss": 2.0})
    callback = early_stopping("valid_rare_loss", patience=1)

    answers = drive(callback, [left_out, measured, left_out, left_out, measured])

    assert [Flag.STOP_TRAINING in answer.flags for answer in answers] == [False, False, False, False, True]
    with pytest.raises(LookupError, match="no metric 'valid_rare_loss'"):
        callback(at(Phase.VALID_END, metrics={"valid_loss": 1.0}))
    with pytest.raises(LookupError, match="no metric 'valid_loss'"):
        early_stopping("valid_loss")(left_out)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: early_stopping(patience=-1), "patience=-1: it is a whole number from 0"),
        (lambda: early_stopping(patience=2.5), "patience=2.5"),  # type: ignore[arg-type]
        (lambda: early_stopping(min_delta=-0.1), "min_delta=-0.1: an improvement is a number from 0"),
        (lambda: early_stopping(mode="best"), "mode='best': 'min' if smaller is better"),  # type: ignore[arg-type]
        (lambda: early_stopping(on_nonfinite="go"), "on_nonfinite='go'"),  # type: ignore[arg-type]
        (lambda: early_stopping(""), "monitor='': name a metric"),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot, not an hour later."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """What it was made with is kept, defaults included, for the log."""
    callback = early_stopping(patience=7, name="patient")

    assert callback.name == "patient"
    assert callback.params == {
        "monitor": "valid_loss",
        "patience": 7,
        "min_delta": 0.0,
        "mode": "min",
        "on_nonfinite": "stop",
        "baseline": None,
        "start_epoch": 0,
    }
