"""Small drawings in a notebook: SVG inside of HTML, without a library and without a script.

Rule of this file: strings from numbers. No text of a user gets into a drawing. It has the colour of the text around
it, so that it is seen on a dark page too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .representation import Html
from .spread import spread

MOST = 120
"""The most points of a curve: of a longer one, so many at equal distances are drawn."""

MOST_CURVES = 8
"""The most metrics of a history that are drawn."""


def history_rows(history: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, Html, str]]:
    """A row for each metric of the finished epochs: its name, its curve, its first and its last value.

    >>> [(name, text) for name, _, text in history_rows(({"valid_loss": 1.0}, {"valid_loss": 0.5}))]
    [('valid_loss', '1 to 0.5 in 2 epochs')]
    """
    shown = [history[at] for at in spread(len(history), MOST)]
    for name in [*dict.fromkeys(name for metrics in shown for name in metrics)][:MOST_CURVES]:
        values = [metrics[name] for metrics in shown if name in metrics]
        epochs = f"{len(history)} epoch{'s' * (len(history) != 1)}"
        yield name, drawing(range(len(values)), [values]), f"{values[0]:.4g} to {values[-1]:.4g} in {epochs}"


def drawing(
    x: Sequence[float],
    curves: Sequence[Sequence[float]],
    *,
    size: tuple[int, int] = (120, 20),
    mark: float | None = None,
) -> Html:
    """Curves over x, the last one in full strength; a red cross at the top where one is not finite.

    The last one fills the drawing. The others have its scale, and are cut off where they leave it.

    Args:
        x: the same for all curves.
        curves: their values.
        size: the width and the height, in pixels.
        mark: a dotted line goes through this x.
    """
    (width, height), margin = size, 3
    across = _scale(x if mark is None else [*x, mark], margin, width - margin)
    up = _scale(curves[-1], height - margin, margin)
    parts = []
    for number, curve in enumerate(curves, 1):
        points = [(across(at), up(value) if math.isfinite(value) else None) for at, value in zip(x, curve, strict=True)]
        parts.append(_path("".join(_pieces(points)), "currentColor", 1.0 if number == len(curves) else 0.3))
        parts.append(_path("".join(_cross(at, margin) for at, y in points if y is None), "red"))
    if mark is not None:
        parts.append(_path(f"M{across(mark):.1f},0V{height}", "currentColor", dashes="2"))
    return _svg(size, parts)


def interval(low: float, middle: float, high: float, span: tuple[float, float]) -> Html:
    """A difference with its error: a line from low to high with a dot in the middle, and zero as a dotted line.

    Args:
        low: where it begins.
        middle: the difference.
        high: where it ends.
        span: the least and the greatest value of all that are drawn on this scale.
    """
    size = (120, 14)
    across = _scale([*span, 0.0], 3, size[0] - 3)
    zero = _path(f"M{across(0.0):.1f},0V{size[1]}", "currentColor", 0.5, dashes="2")
    line = _path(f"M{across(low):.1f},7H{across(high):.1f}", "currentColor")
    return _svg(size, [zero, line, _path(f"M{across(middle):.1f},7h0", "currentColor", width=5)])


class _scale:  # noqa: N801 -- it is called as the function that it is
    """From values to pixels: the least finite value is at `first`, the greatest at `last`."""

    def __init__(self, values: Iterable[float], first: float, last: float) -> None:
        finite = [value for value in values if math.isfinite(value)]
        self._low, self._high = min(finite, default=0.0), max(finite, default=0.0)
        self._first, self._last = first, last

    def __call__(self, value: float) -> float:
        if self._high == self._low:
            return (self._first + self._last) / 2
        # Halved, because the difference of two large numbers can overflow.
        share = (value / 2 - self._low / 2) / (self._high / 2 - self._low / 2)
        return self._first + share * (self._last - self._first)


def _pieces(points: Sequence[tuple[float, float | None]]) -> Iterator[str]:
    """A curve with a gap where there is no y; a point between two gaps is a dot."""
    before = None
    for at, (x, y) in enumerate(points):
        if y is not None:
            alone = before is None and (at + 1 == len(points) or points[at + 1][1] is None)
            yield f"{'M' if before is None else 'L'}{x:.1f},{y:.1f}{'h0' * alone}"
        before = y


def _cross(x: float, y: float) -> str:
    return f"M{x - 2:.1f},{y - 2}l4,4m0,-4l-4,4"


def _path(line: str, colour: str, opacity: float = 1.0, *, dashes: str = "", width: float = 1.5) -> str:
    """A line as SVG has it; "" if there is nothing to draw."""
    if not line:
        return ""
    style = f'stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-linecap="round"'
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path fill="none" {style}{dashed} d="{line}"/>'


def _svg(size: tuple[int, int], parts: Iterable[str]) -> Html:
    width, height = size
    inside = "".join(parts)
    return Html(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{inside}</svg>')
