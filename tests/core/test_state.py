"""What a person sees of a state, and that each of its fields is declared once."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from fsm_train import Flag, Phase, Plan, State
from fsm_train.core.state import COUNTERS, Draft, hyper_read
from fsm_train.core.values import FrozenMap


def test_a_state_is_shown_on_one_screen() -> None:
    """Position, metrics, rate, facts, flags and the reason, however much there is of each."""
    many = {f"valid_metric_{i}": 0.123456789 * i for i in range(50)}
    state = State(
        Phase.EPOCH_END,
        Plan(epochs=9),
        epoch=3,
        step=36,
        flags=Flag.STOP_TRAINING,
        facts={"batch_size": 32.0},
        metrics=many,
        hyper={"lr": (0.1, 0.01, 0.001, 0.0001), "momentum": 0.9},
        history=(many,) * 1000,
        memory={"early_stopping": (1.0, 2)},
        reason="early_stopping: valid_loss has not improved " + "for long " * 100,
    )

    shown = repr(state)

    assert shown.startswith("State(epoch_end: epoch=3, batch=0, step=36; valid_metric_0=0, valid_metric_1=0.1235, ")
    assert "lr=(0.1, 0.01, 0.001, …); batch_size=32; STOP_TRAINING; early_stopping: valid_loss" in shown
    assert len(shown) < 400


def test_a_state_is_a_table_in_a_notebook() -> None:
    """The same in HTML, escaped."""
    state = State(Phase.DONE, Plan(epochs=1), epoch=1, metrics={"<b>": 1.0}, reason="a < b")

    assert state._repr_html_() == (
        "<table><caption>State at done</caption><tr><th>at</th><td>epoch=1, batch=0, step=0</td></tr>"
        "<tr><th>metrics</th><td>&lt;b&gt;=1</td></tr><tr><th>reason</th><td>a &lt; b</td></tr></table>"
    )


def test_a_short_state_is_shown_shortly() -> None:
    """What is not there is left out."""
    assert repr(State(Phase.READY, Plan(max_steps=1))) == "State(ready: epoch=0, batch=0, step=0)"
    assert repr(State(Phase.READY, Plan(1), hyper={"lr": (0.1, 0.2)})).endswith("; lr=(0.1, 0.2))")


def test_a_state_and_its_draft_have_the_same_fields() -> None:
    """A counter that is added to `Counters` is in the draft, in the state and in the line of a log."""
    fields = [field.name for field in attrs.fields(State)]

    assert fields == [field.name for field in attrs.fields(Draft)]
    assert set(COUNTERS) < set(fields)


def test_a_draft_is_written_to_and_its_state_is_not() -> None:
    """What a draft goes through later does not show in a state that was made of it."""
    first = State(Phase.BATCH_END, Plan(epochs=1), step=1)
    draft = first.draft()
    draft.step += 1
    second = draft.state(Phase.STEP_END, Flag.SKIP_ZERO, first.facts)
    draft.step += 1

    assert (first.step, second.step, draft.step) == (1, 2, 3)
    assert (second.phase, second.flags) == (Phase.STEP_END, Flag.SKIP_ZERO)


@pytest.mark.parametrize(
    ("before", "now", "read"),
    [
        ({"lr": 0.1}, {"lr": 0.1}, {"lr": 0.1}),
        ({"lr": 0.1}, {"lr": 0.10000000149011612}, {"lr": 0.1}),
        ({"lr": 0.1}, {"lr": 0.10000000000000002}, {"lr": 0.10000000000000002}),
        ({"d": 1e300}, {"d": 0.5}, {"d": 0.5}),
        ({"d": 1.0}, {"d": 1e300}, {"d": 1e300}),
        ({"lr": (0.1, 0.5)}, {"lr": (0.10000000149011612, 0.5)}, {"lr": (0.1, 0.5)}),
        ({"lr": (0.1, 0.5)}, {"lr": (0.1, 0.5, 0.7)}, {"lr": (0.1, 0.5, 0.7)}),
        ({"lr": (0.1, 0.5)}, {"lr": (0.1,)}, {"lr": (0.1,)}),
        ({"lr": 0.1}, {"lr": (0.1, 0.5)}, {"lr": (0.1, 0.5)}),
        ({"lr": 0.1}, {"momentum": 0.9}, {"momentum": 0.9}),
    ],
)
def test_hyper_parameters_are_read_but_for_the_rounding_of_a_tensor(before: Any, now: Any, read: Any) -> None:
    """What was read counts; single precision of the value before is that value; unchanged, it is the same mapping."""
    result = hyper_read(before, now)

    assert result == read
    assert (result is before) == (read == before)


def test_a_number_that_stays_nan_is_unchanged() -> None:
    """So that a number that is NaN is not said to have changed."""
    before = {"d": math.nan}

    assert hyper_read(before, {"d": float("nan")}) is before


def test_numbers_beyond_single_precision_are_read_as_they_are() -> None:
    """One that an optimizer has rounded to infinity is the number that it was given."""
    before = FrozenMap({"lr": 1e300})

    assert hyper_read(before, {"lr": 1e299}) == {"lr": 1e299}
    assert hyper_read(before, {"lr": math.inf}) is before


def test_writing_to_a_draft_costs_no_more_than_to_any_object() -> None:
    """No converter runs when an effect of the table assigns: what they assign is of the right type."""
    assert Draft.__setattr__ is object.__setattr__
