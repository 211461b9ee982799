"""Drawings in a notebook: each number is seen, whatever it is, and the result is well-formed."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import State
from fsm_train.core.drawing import MOST, MOST_CURVES, drawing, history_rows, interval
from fsm_train.testing import simulate

NAN, INF = math.nan, math.inf


def paths(svg: str) -> list[str]:
    """What is drawn, line by line."""
    return [path.attrib["d"] for path in ElementTree.fromstring(svg)]


def test_a_curve_fills_its_drawing() -> None:
    """Its least value is at the bottom, its greatest at the top, the first left and the last right."""
    assert paths(drawing([0, 1, 2], [[1.0, 3.0, 2.0]])) == ["M3.0,17.0L60.0,3.0L117.0,10.0"]
    assert paths(drawing([0, 1], [[1.0, 2.0]], size=(40, 10))) == ["M3.0,7.0L37.0,3.0"]


def test_the_last_curve_gives_the_scale() -> None:
    """It is in full strength; another may leave the drawing, and makes it no smaller."""
    svg = drawing([0, 1], [[0.0, 8.0], [2.0, 4.0]])

    assert paths(svg) == ["M3.0,31.0L117.0,-25.0", "M3.0,17.0L117.0,3.0"]
    assert re.findall(r'stroke-opacity="([^"]*)"', svg) == ["0.3", "1.0"]


def test_what_is_not_finite_is_a_cross_and_a_gap() -> None:
    """Beside it the curve goes on, and a point between two gaps is a dot."""
    curve, crosses = paths(drawing(range(6), [[1.0, 2.0, NAN, 1.0, INF, 1.0]]))

    assert curve == "M3.0,17.0L25.8,3.0M71.4,17.0h0M117.0,17.0h0"
    assert crosses.count("M") == 2
    assert 'stroke="red"' in drawing([0], [[NAN]])


def test_a_mark_stands_where_its_x_is() -> None:
    """Also where no point is."""
    assert paths(drawing([0, 4], [[1.0, 1.0]], mark=3))[-1] == "M88.5,0V20"


@given(st.lists(st.floats(), max_size=9))
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    """However large, however many, alike or not: the drawing stays within its size, and is XML."""
    for line in paths(drawing(range(len(values)), [values])):
        assert all(
            0 <= float(x) <= 120 and 0 <= float(y) <= 20 for x, y in re.findall(r"[ML]([-\d.]+),([-\d.]+)", line)
        )


def test_an_interval_is_beside_zero() -> None:
    """All on one scale, which zero is always on."""
    assert paths(interval(1.0, 2.0, 3.0, (1.0, 3.0))) == ["M3.0,0V14", "M41.0,7H117.0", "M79.0,7h0"]
    assert paths(interval(-3.0, -2.0, -1.0, (-3.0, 1.0)))[1] == "M3.0,7H60.0"


def test_a_history_is_a_row_for_each_metric() -> None:
    """With the values that were measured; a metric may come late."""
    rows = [*history_rows(({"train_loss": 2.0}, {"train_loss": 1.0, "valid_loss": NAN}))]

    assert [(name, text) for name, _, text in rows] == [
        ("train_loss", "2 to 1 in 2 epochs"),
        ("valid_loss", "nan to nan in 2 epochs"),
    ]
    assert [*history_rows(())] == []
    assert [text for *_, text in history_rows(({"a": 0.5},))] == ["0.5 to 0.5 in 1 epoch"]


def test_a_long_history_is_drawn_at_some_of_its_epochs() -> None:
    """The first and the last among them; and of many metrics the first ones."""
    ((_, svg, text),) = history_rows([{"a": float(at)} for at in range(1000)])

    assert (paths(svg)[0].count(","), text) == (MOST, "0 to 999 in 1000 epochs")
    assert len([*history_rows(({str(at): 1.0 for at in range(99)},))]) == MOST_CURVES


@pytest.fixture
def state() -> State:
    return simulate([], epochs=2, valid_loss=[1.0, 0.5])


def test_a_state_shows_its_history_and_its_notes(state: State) -> None:
    """Notes are what its owner should know: they are escaped as all text is."""
    html = attrs.evolve(state, notes=("the sink <x> was switched off",))._repr_html_()

    assert "<td>1 to 0.5 in 2 epochs</td>" in html
    assert '<tr><th>note</th><td colspan="2">the sink &lt;x&gt; was switched off</td></tr>' in html
    ElementTree.fromstring(html)
