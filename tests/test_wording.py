"""Text for people, case by case."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import Plan
from fsm_train.wording import aligned_number, ending, escaped, learning_rate, losses_first, reached_limit, short_number


@given(st.text())
def test_escaped_text_is_printable(text: str) -> None:
    """No character of any text can control a terminal, and printable text stays as it is."""
    assert escaped(text).isprintable()
    assert not text.isprintable() or escaped(text) == text


@pytest.mark.parametrize(
    ("value", "short", "aligned"),
    [(0.5, "0.5", "0.5000"), (12345.6, "1.235e+04", "1.235e+04"), (1234.0, "1234", "1234"), (nan, "nan", "nan")],
)
def test_numbers_have_four_significant_digits(value: float, short: str, aligned: str) -> None:
    """In a sentence without trailing zeros, in a column with them."""
    assert (short_number(value), aligned_number(value)) == (short, aligned)


@pytest.mark.parametrize(("value", "text"), [(123456, "123456"), (True, "True"), ((0.1, 0.2), "(0.1, 0.2)")])
def test_only_floats_are_rounded(value: object, text: str) -> None:
    """A count is exact, whatever its size."""
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("lr", "text"),
    [(0.1, "0.1"), ((0.1, 0.1), "0.1"), ((0.2, 0.01, 0.1), "0.01..0.2"), ((), ""), (None, ""), ((nan, nan), "nan")],
)
def test_learning_rates_of_groups_are_a_range(lr: Any, text: str) -> None:
    """Rates that read the same are one rate."""
    assert learning_rate(lr) == text


def test_losses_come_first() -> None:
    """Training before validation, then the other metrics in their order."""
    assert losses_first(["b", "valid_loss", "a", "train_loss", "b"]) == ["train_loss", "valid_loss", "b", "a"]


@pytest.mark.parametrize(
    ("epoch", "step", "text"), [(0, 0, ""), (2, 9, "2 epochs"), (1, 10, "10 steps"), (3, 10, "2 epochs")]
)
def test_limit_that_is_reached_is_named(epoch: int, step: int, text: str) -> None:
    """Of two limits the epochs come first."""
    assert reached_limit(Plan(epochs=2, max_steps=10), epoch, step) == text


@pytest.mark.parametrize(
    ("where", "reason", "text"),
    [
        ("after 1 epoch", "enough", "stopped after 1 epoch: enough"),
        ("", "enough", "stopped: enough"),
        ("after 1 epoch", "", "stopped after 1 epoch"),
        ("", "", "stopped"),
    ],
)
def test_an_end_is_one_sentence(where: str, reason: str, text: str) -> None:
    """Place and reason are left out where there is none."""
    assert ending("stopped", where, reason) == text


def test_infinities_are_numbers_too() -> None:
    """They have no digits to align."""
    assert [aligned_number(inf), short_number(-inf)] == ["inf", "-inf"]
