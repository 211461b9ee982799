"""Where two values differ."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from fsm_train import Phase
from fsm_train.testing import at, differences
from fsm_train.testing.differences import fingerprint, same


@attrs.frozen
class Best:
    value: float
    bad: int = attrs.field(default=0, eq=False)


def test_fields_that_differ_are_named() -> None:
    """Each field is named by its path, with the left and the right value."""
    a = at(Phase.EPOCH_END, step=3, valid_loss=1.0, memory={"stop": Best(1.0)}, history=({"a": 1.0},))
    b = at(Phase.EPOCH_END, step=3, valid_accuracy=0.5, memory={"stop": Best(2.0)}, history=({"a": 2.0},))

    assert list(differences(a, b)) == [
        "metrics['valid_loss']: only left, 1.0",
        "metrics['valid_accuracy']: only right, 0.5",
        "history[0]['a']: 1.0 != 2.0",
        "memory['stop'].value: 1.0 != 2.0",
    ]


def test_equal_states_have_no_differences() -> None:
    """NaN does not differ from NaN, nor does what `==` on states leaves out."""
    assert list(differences(at(Phase.EPOCH_END, valid_loss=math.nan), at(Phase.EPOCH_END, valid_loss=math.nan))) == []
    assert list(differences(at(Phase.READY, elapsed=1.0), at(Phase.READY, elapsed=2.0))) == []
    assert list(differences(Best(1.0), Best(1.0, bad=3))) == ["bad: 0 != 3"]
    assert list(differences(0.0, -0.0, exactly=False)) == []


def test_values_themselves_can_differ() -> None:
    """Values without fields are shown whole; functions by name."""
    assert list(differences(1, "1")) == ["value: 1 != '1'"]
    assert list(differences((1,), (1, 2), "pair")) == ["pair: (1,) != (1, 2)"]
    assert next(iter(differences(1, test_values_themselves_can_differ))).startswith("value: 1 != <function test_values")


@pytest.mark.parametrize(
    ("a", "b"),
    [(0.0, -0.0), (1, 1.0), (1, True), ((1,), [1]), ({"a": 1}, {"a": 2}), ({1}, {2}), (len, max), (same, fingerprint)],
)
def test_what_equality_overlooks(a: Any, b: Any) -> None:
    """Two values are the same only to the last bit and to the type."""
    assert not same(a, b)
    assert same(a, a)
