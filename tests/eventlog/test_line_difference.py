"""The engine that finds the first difference, on mappings made by hand."""

from __future__ import annotations

from fsm_train.eventlog.line_difference import Change, Part, first_change, format_json


def test_the_first_part_that_differs_is_named() -> None:
    """Parts are compared in order, and so are their keys."""
    parts = [
        Part("facts", {"loss": 1.0}, {"loss": 1.0}),
        Part("answers", {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 0, "c": 0}),
        Part("fields", {"step": 1}, {"step": 2}),
    ]

    assert first_change(parts) == Change("answers", "b", 2, 0)


def test_only_the_given_keys_are_compared() -> None:
    """In the order in which they are given."""
    a, b = {"x": 1, "y": 1, "z": 1}, {"x": 2, "y": 2, "z": 2}

    assert first_change([Part("", a, b, ("z", "y"))]) == Change("", "z", 1, 2)
    assert first_change([Part("", a, b, ())]) is None


def test_a_missing_key_equals_none() -> None:
    """So a key that only one side has differs unless its value is None."""
    assert first_change([Part("", {"x": None}, {})]) is None
    assert first_change([Part("", {}, {"x": 1})]) == Change("", "x", None, 1)


def test_values_are_written_for_a_person() -> None:
    """Text as it is, nothing as a word, the rest as JSON."""
    assert [format_json(value) for value in (None, "setup", {"lr": [0.1]})] == ["nothing", "setup", '{"lr":[0.1]}']
