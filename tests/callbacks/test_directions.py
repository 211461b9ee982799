"""Which way a metric is better, by its name; None where there is a doubt."""

from __future__ import annotations

import pytest

from fsm_train.callbacks.directions import direction_of


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("valid_loss", "min"),
        ("train_logloss", "min"),
        ("valid_dice_loss", "min"),
        ("valid_word_error_rate", "min"),
        ("valid_brier_score", "min"),
        ("valid_negative_log_likelihood", "min"),
        ("valid_MeanSquaredError", "min"),
        ("valid_log_likelihood", "max"),
        ("valid_f1_macro", "max"),
        ("valid_recall_at_5", "max"),
        ("accuracy", "max"),
        ("valid_score", "max"),
        ("valid_neg_loss", None),
        ("valid_neg_average_precision", None),
        ("valid_error_score", None),
        ("valid_accuracy_drop", None),
        ("valid_", None),
    ],
)
def test_direction_is_that_of_the_last_word(name: str, direction: str | None) -> None:
    """Words behind it that say how it is averaged do not count; a negation leaves a doubt."""
    assert direction_of(name) == direction
