"""Curves of metrics as a picture.

Rule of this file: it is the only one in the event log that imports matplotlib, which is an extra.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from ..wording import escaped
from .epochs import Epochs

MAX_PANELS = 100
"""The most panels of a picture."""

Points = Sequence[tuple[float, float]]
"""A curve, as pairs of x and y."""

MARKED = 40
"""Each point of a curve with at most so many is marked; of a longer one only a point without neighbours is."""

WIDE = 1000.0
"""From how many times the least value the largest one hides how the others differ."""

_AT_THE_EDGE = (("nan", "x", 0.97), ("inf", "^", 0.97), ("-inf", "v", 0.03))
"""How a value that is not finite is shown: its text, its mark, and how high that is in the panel, from 0 to 1."""


def plot(runs: Mapping[str, Epochs], path: str) -> None:
    """Draw each metric over the epochs: train (dashed) and valid of one name in one panel, one colour per run.

    Args:
        runs: by the label of a run, its finished epochs.
        path: of the picture; its suffix, such as .png, gives the format.

    Raises:
        ValueError: matplotlib does not know the format, there is no finished epoch, or there are too many metrics.
    """
    curves = {
        run: points_of(((epoch.epoch, epoch.metrics) for epoch in epochs), epochs.names) for run, epochs in runs.items()
    }
    panels = panels_of(curves)
    figure = Figure(figsize=size_of(len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, names) in zip(axes_of(figure, len(panels)), panels.items(), strict=True):
        draw_panel(axis, title, names, curves)
        fit_scale(axis, names, curves)
    figure.savefig(path)


def points_of(epochs: Iterable[tuple[int, Mapping[str, float]]], names: Iterable[str]) -> dict[str, Points]:
    """The curve of each of these metrics, by name, over the epochs that measured it."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for epoch, metrics in epochs:
        for name in metrics.keys() & points.keys():
            points[name].append((epoch, metrics[name]))
    return {**points}


def panels_of(curves: Mapping[str, Mapping[str, Points]]) -> dict[str, list[str]]:
    """The metrics of a panel, by its title: those that are called alike but for train_ and valid_.

    Raises:
        ValueError: there is nothing to draw, or there are too many panels.
    """
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for metrics in curves.values() for name in metrics):
        panels.setdefault(without_prefix(name), []).append(name)
    if not panels:
        raise ValueError("there is no finished epoch to draw")
    if len(panels) > MAX_PANELS:
        raise ValueError(f"there are {len(panels)} metrics to draw, and a picture has at most {MAX_PANELS}")
    return panels


def without_prefix(name: str) -> str:
    """The name of a metric without train_ or valid_."""
    return name.removeprefix("train_").removeprefix("valid_")


def columns_of(panels: int) -> int:
    """In how many columns these panels stand."""
    return min(3, math.ceil(panels / 3))


def size_of(panels: int) -> tuple[float, float]:
    """The width and the height of a picture with these panels, in inches."""
    columns = columns_of(panels)
    return (6.0 if columns == 1 else 4.5 * columns), 3.0 * math.ceil(panels / columns)


def axes_of(figure: FigureBase, panels: int) -> list[Axes]:
    """New axes in a figure, one for each panel."""
    columns = columns_of(panels)
    axes: list[Axes] = figure.subplots(math.ceil(panels / columns), columns, squeeze=False).ravel().tolist()
    for unused in axes[panels:]:
        unused.remove()
    return axes[:panels]


def draw_panel(
    axis: Axes, title: str, names: Iterable[str], curves: Mapping[str, Mapping[str, Points]], first: int = 0
) -> None:
    """Draw these metrics of each run over the epochs: train dashed, one colour per run and metric.

    Args:
        axis: where to draw.
        title: what the values are, which is written at the y-axis.
        names: of the metrics; a run may lack some.
        curves: by run and metric.
        first: the number of the first colour.
    """
    colours: dict[tuple[str, str], str] = {}
    for run, metrics in curves.items():
        for name in names:
            if metrics.get(name):
                label = name if len(curves) == 1 else f"{run}: {name}"
                colour = colours.setdefault((run, without_prefix(name)), f"C{first + len(colours)}")
                draw_curve(axis, label, metrics[name], colour, dashed=name.startswith("train_"))
    axis.set(xlabel="epoch", ylabel=plain(title))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()


def fit_scale(axis: Axes, names: Iterable[str], curves: Mapping[str, Mapping[str, Points]]) -> None:
    """Let a panel have a logarithmic scale where its values are positive and the largest would hide all others."""
    values = [
        value
        for metrics in curves.values()
        for name in names
        for _, value in metrics.get(name, ())
        if math.isfinite(value)
    ]
    if values and 0 < min(values) < max(values) / WIDE:
        axis.set_yscale("log")


def draw_curve(axis: Axes, label: str, points: Points, colour: str, *, dashed: bool = False) -> None:
    """Draw a curve. Where it is not finite it has a gap, and a mark at the edge of the panel."""
    x = [at for at, _ in points]
    finite = [value if math.isfinite(value) else math.nan for _, value in points]
    marked = [index for index in range(len(x)) if len(x) <= MARKED or all(map(math.isnan, _beside(finite, index)))]
    style, marker = "--" if dashed else "-", "." if marked else ""
    axis.plot(x, finite, style, color=colour, label=plain(label), marker=marker, markevery=marked)
    for text, mark, height in _AT_THE_EDGE:
        if there := [at for at, value in points if str(value) == text]:
            edge = axis.get_xaxis_transform()  # x as in the data, y from the bottom of the panel to its top
            shown = plain(f"{label} is {text}")
            axis.plot(there, [height] * len(there), mark, color=colour, label=shown, transform=edge)


def _beside(values: Sequence[float], index: int) -> tuple[float, float]:
    """The values before and after; NaN at the ends."""
    before = values[index - 1] if index else math.nan
    return before, values[index + 1] if index + 1 < len(values) else math.nan


def plain(text: str) -> str:
    """Text as matplotlib shows it unchanged: without control characters, and without mathematics.

    A label that begins with an underscore would be left out of a legend: it gets a space before it.
    """
    return " " * text.startswith("_") + escaped(text).replace("$", r"\$")
