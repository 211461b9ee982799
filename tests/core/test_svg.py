"""The machine as a picture: all of it is there, and nothing lies over something else."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from fsm_train.core.diagram import arrows, contracted
from fsm_train.core.layout import CHAR, HEAD, LINE, ORDER, layout, places_of
from fsm_train.core.phase import CONSULTED, Phase
from fsm_train.core.svg import svg
from fsm_train.core.table import ROWS, TABLE, Edge

SPACE = "{http://www.w3.org/2000/svg}"

watched = st.sets(st.sampled_from(CONSULTED)).map(contracted)


def texts(picture: str) -> list[str]:
    """What stands in the picture, as a reader would select it."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(picture).iter(f"{SPACE}text")]


def test_each_place_and_each_arrow_is_drawn() -> None:
    """Once, with the label that the other diagrams have."""
    drawn = texts(svg())
    labels = [" ".join(filter(None, (guard, operations))) for _, _, guard, operations in arrows(TABLE)]

    assert sorted(text for text in drawn if text in {place.name for place in ROWS}) == sorted(p.name for p in ROWS)
    assert sorted(filter(None, labels)) == sorted(text for text in drawn if text in labels)
    assert list(places_of(ORDER)) == list(dict.fromkeys(places_of(ORDER)))
    assert set(places_of(ORDER)) == set(ROWS)


@given(st.one_of(st.just(TABLE), watched))
def test_every_exit_arrives(table: Iterable[Edge]) -> None:
    """Down at the next place, or by the lane of its place, which reaches from all exits to the arrow that comes in."""
    plan = layout(table)
    lanes = {lane.target: lane for lane in plan.lanes}
    arrived = [
        (row.place, leaving.target)
        for row in plan.rows
        for leaving in row.exits
        if plan.below.get(row.place) is leaving.target or leaving.y in lanes[leaving.target].sources
    ]

    assert sorted((a.name, b.name) for a, b in arrived) == sorted((a.name, b.name) for a, b, _, _ in arrows(table))


@given(st.one_of(st.just(TABLE), watched), st.sets(st.sampled_from(CONSULTED)))
def test_nothing_lies_over_something_else(table: Iterable[Edge], consulted: set[Phase]) -> None:
    """Places and labels are below each other, lanes beside each other, and brackets are nested."""
    plan = layout(table, {phase.name: ["one", "another"] for phase in consulted})

    lines = [y for row in plan.rows for y in _lines(row)]
    assert all(after - before >= LINE - 1 for before, after in itertools.pairwise(lines))
    for one, other in itertools.combinations(plan.lanes, 2):
        assert one.index != other.index or one.bottom < other.top or other.bottom < one.top
    for lane in plan.lanes:
        ends = (*lane.sources, next(row.middle for row in plan.rows if row.place is lane.target))
        assert (lane.top, lane.bottom) == (min(ends), max(ends))
    for one, other in itertools.combinations(plan.boxes, 2):  # the outer ones first
        inside = one.top < other.top and other.bottom < one.bottom and one.depth < other.depth
        assert inside or one.bottom < other.top or other.bottom < one.top
    assert all(0 < box.top < box.bottom < plan.height for box in plan.boxes)


def _lines(row: object) -> list[float]:
    """The middles of the lines of a place, from top to bottom."""
    exits = [leaving.y for leaving in row.exits if leaving.y > row.y + HEAD]  # type: ignore[attr-defined]
    return [row.middle, *exits]  # type: ignore[attr-defined]


def test_lanes_beside_each_other_have_other_colours() -> None:
    """So that an eye can follow each."""
    lanes = layout().lanes

    for one, other in itertools.combinations(lanes, 2):
        if one.is_near(other.index, other.top, other.bottom) and abs(one.index - other.index) <= 1:
            assert one.colour != other.colour


def test_text_stays_inside() -> None:
    """Also the longest guard, and a callback with a long name."""
    picture = svg(consulted={"LOSS_END": ["a_callback_with_a_very_long_name_" * 3]})
    width = float(re.findall(r'viewBox="0 0 (\d+) \d+"', picture)[0])
    root = ElementTree.fromstring(picture)

    assert max(float(e.get("x", 0)) + CHAR * len("".join(e.itertext())) for e in root.iter(f"{SPACE}text")) < width


def test_names_of_callbacks_are_text() -> None:
    """Whatever is in them: markup, control characters, half a pair of UTF-16."""
    names = ["<script>alert(1)</script>", "a&b", "\x1b[2J", "\ud800"]
    picture = svg(consulted={"EPOCH_END": names})

    assert {"● <script>alert(1)</script>", "● a&b", "● \\x1b[2J", "● \\ud800"} <= set(texts(picture))
    assert "<script" not in picture


def test_who_does_not_see_it_is_told() -> None:
    """It has a title, and a description with each exit; it asks for nothing from elsewhere, and knows the dark."""
    picture = svg(consulted={"EPOCH_END": ["early_stopping"]})
    root = ElementTree.fromstring(picture)
    description = root.findtext(f"{SPACE}desc") or ""

    assert (root.get("role"), root.findtext(f"{SPACE}title")) == ("img", "The machine of a training")
    assert "BATCH_BEGIN: [SKIP_BATCH] to BATCH_END; forward to LOSS_BEGIN." in description
    assert "EPOCH_END, where early_stopping is consulted: [SUSPEND] to SUSPEND; " in description
    assert "DONE: the end." in description
    assert re.findall(r"https?://[^\"]*", picture) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme: dark" in picture


def test_a_picture_of_what_is_watched_is_small() -> None:
    """With brackets only around what is there, and no labels."""
    picture = svg(contracted({Phase.EPOCH_END}), {"EPOCH_END": ["early_stopping"]})

    brackets = ["a call of run", "a training", "an epoch"]
    assert texts(picture) == [*brackets, "READY", "EPOCH_END", "● early_stopping", "DONE", "SUSPENDED", "FAILED"]
