"""Where everything is in the picture of the table: a list of places from the beginning of a training to its end.

Rule of this file: from top to bottom everything gets its height here, in pixels, so that pictures can be compared as
numbers. From left to right it is decided where it is drawn, in `svg.py`.

An exit that leads to the next place of the list is an arrow down. All others that lead to one place share a line on the
right, which is the closer the shorter it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import attrs

from .diagram import NOBODY, arrows
from .phase import Junction, Phase, Place
from .table import TABLE, Edge

P, J = Phase, Junction

Leaving = Sequence[tuple[str, str, Place]]
"""The exits of a place: guard, operations, and where each leads."""

Nested = Place | tuple[str, tuple["Nested", ...]]

BATCH: Nested = (
    "a batch",
    (
        *(J.FETCHED, J.NEXT_TURN, P.BATCH_BEGIN, P.LOSS_BEGIN, P.LOSS_END, P.BACKWARD_END),
        ("a step", (P.STEP_BEGIN, P.STEP_END)),
        P.BATCH_END,
    ),
)
VALIDATION: Nested = (
    "a validation",
    (
        *(J.VALID_ABANDONED, P.VALID_BEGIN, J.VALID_FETCHED),
        ("a batch of it", (P.VALID_BATCH_BEGIN, P.VALID_BATCH_END)),
        P.VALID_END,
    ),
)
EPOCH: Nested = ("an epoch", (P.EPOCH_BEGIN, BATCH, J.BATCHES_OVER, VALIDATION, P.EPOCH_END))
TRAINING: Nested = ("a training", (P.TRAIN_BEGIN, J.NO_EPOCH, EPOCH, P.TRAIN_END))
ORDER: Sequence[Nested] = (
    P.READY,
    ("a call of run", (P.SETUP, TRAINING, P.SUSPEND, P.TEARDOWN)),
    *(P.DONE, P.SUSPENDED, P.FAILED, J.RESUMED),
)
"""All places from the beginning to the end, in brackets with their titles."""

# Lengths in pixels.
MARGIN, INDENT, TITLE, HEAD, LINE, GAP, LANE = 12, 12, 20, 20, 14, 6, 12
COLOURS, NEAR = 6, 3
"""How many colours there are for lanes, and how many lanes away one is still near."""

OTHERWISE = "otherwise"

CHAR = 6.65
"""The width of a character of 11 pixels, in a font of fixed width."""


@attrs.frozen
class Exit:
    """An arrow that leaves a place.

    Attributes:
        guard, operations: the two parts of its label; "" for none.
        target: where it leads.
        y: the height of its line, in pixels from the top.
    """

    guard: str
    operations: str
    target: Place
    y: float

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.guard, self.operations)))

    @property
    def width(self) -> float:
        """Of its label."""
        return CHAR * len(self.label)


@attrs.frozen
class Row:
    """A place.

    Attributes:
        place: the place.
        y: the top of its box, in pixels.
        consulted: the names of those who are consulted there.
        exits: the arrows that leave it, from top to bottom.
    """

    place: Place
    y: float
    consulted: tuple[str, ...]
    exits: tuple[Exit, ...]

    @property
    def middle(self) -> float:
        """The height at which arrows come in."""
        return self.y + HEAD / 2


@attrs.frozen
class Box:
    """A bracket.

    Attributes:
        title: what it encloses.
        depth: how many brackets are around it.
        top, bottom: from where to where it reaches, in pixels.
    """

    title: str
    depth: int
    top: float
    bottom: float


@attrs.frozen
class Lane:
    """The line that the exits to one place share.

    Attributes:
        target: the place.
        index: which of the lanes it is, from the left, the first being 0.
        colour: one of the `COLOURS`, by its number: another one than the lanes around it have.
        sources: the heights of the exits that join it, in pixels.
        top, bottom: from where to where it reaches, in pixels.
    """

    target: Place
    index: int
    colour: int
    sources: tuple[float, ...]
    top: float
    bottom: float

    def is_near(self, index: int, top: float, bottom: float) -> bool:
        """Whether an eye could take it for a lane with this index, from there to there."""
        return abs(self.index - index) <= NEAR and self.top < bottom + 40 and top < self.bottom + 40


@attrs.frozen
class Layout:
    """Where everything is, from top to bottom.

    Attributes:
        rows: the places, in their order.
        boxes: the brackets around them, the outer ones first.
        lanes: the lines beside them, the shortest first.
        below: of each place the next one of the list.
        height: of all of it, in pixels.
    """

    rows: tuple[Row, ...]
    boxes: tuple[Box, ...]
    lanes: tuple[Lane, ...]
    below: Mapping[Place, Place]
    height: float


def layout(table: Iterable[Edge] = TABLE, consulted: Mapping[str, Collection[str]] = NOBODY) -> Layout:
    """Where everything is.

    Args:
        table: the rows to draw.
        consulted: by the name of a phase, who is consulted there.
    """
    edges = tuple(table)
    shown = {place for edge in edges for place in (edge.source, edge.target)}
    exits: dict[Place, list[tuple[str, str, Place]]] = {}
    for source, target, guard, operations in arrows(edges):
        exits.setdefault(source, []).append((guard, operations, target))
    listed = [place for place in places_of(ORDER) if place in shown]
    below = dict(itertools.pairwise(listed))
    rows: list[Row] = []
    boxes: list[Box] = []

    def put(items: Sequence[Nested], y: float, depth: int) -> float:
        for item in items:
            if isinstance(item, tuple):
                title, inner = item
                if shown.isdisjoint(places_of(inner)):
                    continue
                top, y = y, put(inner, y + TITLE, depth + 1) + GAP / 2
                boxes.append(Box(title, depth, top, y))
                y += GAP / 2
            elif item in shown:
                row = _row(item, y, tuple(consulted.get(item.name, ())), exits.get(item, ()), below.get(item))
                rows.append(row)
                y = max([y + HEAD + LINE * len(row.consulted), *(leaving.y + LINE / 2 for leaving in row.exits)]) + GAP
            y += GAP
        return y

    bottom = put(ORDER, MARGIN, 0)
    return Layout(
        tuple(rows), tuple(sorted(boxes, key=lambda box: box.depth)), _lanes(rows, below), below, bottom + MARGIN
    )


def _row(place: Place, top: float, consulted: tuple[str, ...], exits: Leaving, below: Place | None) -> Row:
    """A place with a line for each exit, but for a silent arrow down.

    The last of several says "otherwise" if it alone has neither guard nor operation.
    """
    silent = [not guard and not operations for guard, operations, _ in exits]
    says_otherwise = len(exits) > 1 and silent == [False] * (len(exits) - 1) + [True]
    y = top + HEAD + LINE * len(consulted) + LINE / 2 + 2
    placed = []
    for (guard, operations, target), is_silent in zip(exits, silent, strict=True):
        operations = OTHERWISE if is_silent and says_otherwise else operations
        if is_silent and not operations and target is below:
            placed.append(Exit("", "", target, top + HEAD))
            continue
        placed.append(Exit(guard, operations, target, y))
        y += LINE
    return Row(place, top, consulted, tuple(placed))


def places_of(items: Iterable[Nested]) -> Iterator[Place]:
    for item in items:
        if isinstance(item, tuple):
            yield from places_of(item[1])
        else:
            yield item


def _lanes(rows: Sequence[Row], below: Mapping[Place, Place]) -> tuple[Lane, ...]:
    """A lane for each place that exits lead to from elsewhere than right above; short ones are near the labels."""
    middle = {row.place: row.middle for row in rows}
    sources: dict[Place, list[float]] = {}
    for row in rows:
        for leaving in row.exits:
            if leaving.target is not below.get(row.place):
                sources.setdefault(leaving.target, []).append(leaving.y)
    spans = {target: (min(*ys, middle[target]), max(*ys, middle[target])) for target, ys in sources.items()}
    lanes: list[Lane] = []
    for target in sorted(spans, key=lambda target: spans[target][1] - spans[target][0]):
        top, bottom = spans[target]
        taken = {lane.index for lane in lanes if lane.top - 2 < bottom and top < lane.bottom + 2}
        index = next(i for i in itertools.count() if i not in taken)
        near = [lane.colour for lane in lanes if lane.is_near(index, top, bottom)]
        colour = min(range(COLOURS), key=near.count)
        lanes.append(Lane(target, index, colour, tuple(sources[target]), top, bottom))
    return tuple(lanes)
