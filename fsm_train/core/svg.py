"""The table as a picture: a list of places from the beginning of a training to its end, in nested brackets.

Rule of this file: strings from a layout, whose heights stay as they are. All text in it is escaped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from html import escape

from .diagram import NOBODY
from .layout import CHAR, HEAD, INDENT, LANE, LINE, MARGIN, OTHERWISE, Exit, Layout, Row, layout
from .phase import FINAL, Junction, Phase, Place, place_name
from .table import TABLE, Edge

STYLE = """
  :root { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --box: 31, 35, 40; --node: #ffffff; --edge: #818b98;
          --flag: #0550ae; --who: #116329; --seen: #dafbe1;
          --l0: #0969da; --l1: #9a6700; --l2: #8250df; --l3: #1a7f37; --l4: #bf3989; --l5: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --box: 230, 237, 243; --node: #161b22; --edge: #6e7681;
            --flag: #79c0ff; --who: #7ee787; --seen: #12261e;
            --l0: #4493f8; --l1: #d29922; --l2: #ab7df8; --l3: #3fb950; --l4: #db61a2; --l5: #f0883e }
  }
  text { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink) }
  .paper { fill: var(--paper) }
  .box { fill: rgba(var(--box), 0.025); stroke: rgba(var(--box), 0.22) }
  .title { font-family: system-ui, sans-serif; font-style: italic; fill: var(--soft) }
  .soft { fill: var(--soft) }
  .node { fill: var(--node); stroke: var(--ink) }
  .junction { fill: var(--node); stroke: var(--edge); stroke-dasharray: 3 2 }
  .final { stroke-width: 2.5 }
  .seen { fill: var(--seen); stroke: var(--who); stroke-width: 1.5 }
  .name { font-weight: 600 }
  .who { fill: var(--who) }
  .guard { fill: var(--flag) }
  .down { stroke: var(--ink); stroke-width: 1.6; fill: none }
  .branch { stroke: var(--edge); fill: none }
  .lane { fill: none; stroke-width: 1.2 }
"""


def svg(table: Iterable[Edge] = TABLE, consulted: Mapping[str, Collection[str]] = NOBODY) -> str:
    """The table as SVG: text is text, it is dark where the reader's screen is, and it has a title and a description.

    Args:
        table: the rows to draw.
        consulted: by the name of a phase, who is consulted there; shown in its box.
    """
    return _Picture(layout(table, consulted)).text()


class _Picture:
    """A layout as SVG.

    Args:
        plan: where everything is, from top to bottom; from left to right it is decided here.
    """

    def __init__(self, plan: Layout) -> None:
        self.plan = plan
        depth = max((box.depth for box in plan.boxes), default=-1) + 1
        self.left = MARGIN + INDENT * depth
        self.stem = self.left + 12
        self.labels = self.stem + 18
        widths = [exit_.width for row in plan.rows for exit_ in row.exits]
        widths += [CHAR * (len(name) + 2) for row in plan.rows for name in row.consulted]
        self.lanes = self.labels + max([150.0, *widths]) + 14
        self.right = self.lanes + LANE * (max((lane.index for lane in plan.lanes), default=0) + 1)
        self.width = self.right + MARGIN + INDENT * depth
        self.middle = {row.place: row.middle for row in plan.rows}

    def text(self) -> str:
        size = f"{self.width:.0f} {self.plan.height:.0f}"
        width, height = size.split()
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width}" height="{height}"',
            'role="img" aria-labelledby="title description">',
            '<title id="title">The machine of a training</title>',
            f'<desc id="description">{_quoted(self._description())}</desc>',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{width}" height="{height}" rx="6"/>',
        ]
        parts = [*self._boxes(), *self._lanes(), *(part for row in self.plan.rows for part in self._row(row))]
        return "\n".join([*head, *parts, "</svg>"])

    def _description(self) -> str:
        """What a reader who does not see it is told: each place with its exits, in their order."""
        sentences = []
        for row in self.plan.rows:
            exits = [" ".join(filter(None, (e.guard, e.operations, "to", place_name(e.target)))) for e in row.exits]
            who = f", where {', '.join(row.consulted)} is consulted" if row.consulted else ""
            sentences.append(f"{place_name(row.place)}{who}: {'; '.join(exits) or 'the end'}.")
        return " ".join(sentences)

    def _boxes(self) -> Iterator[str]:
        for box in self.plan.boxes:
            x = MARGIN + INDENT * box.depth
            yield _rect("box", x, box.top, self.width - 2 * x, box.bottom - box.top, 8)
            yield _text("title", self.stem + 8, box.top + 14, box.title)

    def _lanes(self) -> Iterator[str]:
        """Each in a colour of its own, so that an eye can follow it: from the exits to the arrow that comes in."""
        for lane in sorted(self.plan.lanes, key=lambda lane: -lane.index):
            x, y = self.lanes + LANE * lane.index, self.middle[lane.target]
            colour = f"var(--l{lane.colour})"
            width = self._node_width(lane.target)
            yield f'<g stroke="{colour}" fill="{colour}">'
            yield f'<path class="lane" d="M{x:.1f} {lane.top:.1f}V{lane.bottom:.1f}"/>'
            yield f'<path class="lane" d="M{x:.1f} {y:.1f}H{self.left + width + 6:.1f}"/>'
            yield _arrowhead(self.left + width + 1, y, "left")
            for source in lane.sources:
                yield f'<path class="lane" d="M{self._end_of_label(source):.1f} {source:.1f}H{x:.1f}"/>'
                yield f'<circle cx="{x:.1f}" cy="{source:.1f}" r="2" stroke="none"/>'
            yield "</g>"

    def _end_of_label(self, y: float) -> float:
        width = next(leaving.width for row in self.plan.rows for leaving in row.exits if leaving.y == y)
        return self.labels + width + 5 if width else self.stem

    def _node_width(self, place: Place) -> float:
        return CHAR * 1.05 * len(place.name) + (34 if isinstance(place, Junction) else 20)

    def _row(self, row: Row) -> Iterator[str]:
        last = next((e.y for e in reversed(row.exits) if e.target is not self.plan.below.get(row.place)), None)
        if last is not None:
            yield f'<path class="branch" d="M{self.stem:.1f} {row.y + HEAD}V{last:.1f}"/>'
        for leaving in row.exits:
            yield from self._exit(row, leaving)
        yield self._node(row)
        shift = 17 if isinstance(row.place, Junction) else 10
        yield _text("name", self.left + shift, row.y + 15, row.place.name)
        for i, name in enumerate(row.consulted):
            yield _text("who", self.labels, row.y + HEAD + LINE * i + 13, f"● {name}")

    def _node(self, row: Row) -> str:
        width = self._node_width(row.place)
        seen = " seen" if row.consulted else ""
        if isinstance(row.place, Junction):
            x, y = self.left, row.y
            points = [(x, y + HEAD / 2), (x + 9, y), (x + width - 9, y), (x + width, y + HEAD / 2)]
            points += [(x + width - 9, y + HEAD), (x + 9, y + HEAD)]
            return f'<polygon class="junction" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'
        final = " final" if row.place in FINAL or row.place is Phase.READY else ""
        return _rect(f"node{final}{seen}", self.left, row.y, width, HEAD, 5)

    def _exit(self, row: Row, leaving: Exit) -> Iterator[str]:
        """Its label; down to the next place it is an arrow, and else a branch that its lane takes up."""
        down = self.plan.below.get(row.place)
        if leaving.target is down:
            end = self.middle[down] - HEAD / 2
            yield f'<path class="down" d="M{self.stem:.1f} {row.y + HEAD}V{end - 5:.1f}"/>'
            yield f'<g fill="var(--ink)">{_arrowhead(self.stem, end, "down")}</g>'
            if leaving.label:
                yield _text("title", self.labels - 13, leaving.y + 4, "↓")
        elif leaving.label:
            yield f'<path class="branch" d="M{self.stem:.1f} {leaving.y:.1f}H{self.labels - 4:.1f}"/>'
        spans = [f'<tspan class="guard">{_quoted(leaving.guard)}</tspan>'] if leaving.guard else []
        kind = "soft" if leaving.operations == OTHERWISE else "operation"
        spans += [f'<tspan class="{kind}">{_quoted(leaving.operations)}</tspan>'] if leaving.operations else []
        if spans:
            yield f'<text x="{self.labels:.1f}" y="{leaving.y + 4:.1f}">{" ".join(spans)}</text>'


def _rect(kind: str, x: float, y: float, width: float, height: float, radius: float) -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}"'
    return f'<rect class="{kind}" {at}/>'


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{_quoted(text)}</text>'


def _quoted(text: str) -> str:
    """The text as XML may have it, which knows neither control characters nor half a pair of UTF-16."""
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def _arrowhead(x: float, y: float, to: str) -> str:
    """A small triangle with its point here."""
    others = [(x + 7, y - 3.5), (x + 7, y + 3.5)] if to == "left" else [(x - 3.5, y - 7), (x + 3.5, y - 7)]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in [(x, y), *others])
    return f'<polygon stroke="none" points="{points}"/>'
