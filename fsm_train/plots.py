"""Pictures of a training in matplotlib: its history, and the schedules of its hyper-parameters.

Rule of this file: matplotlib, an extra, is imported when something is drawn. What is drawn is added to axes that
belong to the user, who saves or shows them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from .core.arguments import kind_of, takes_by_name
from .core.callback import Callback
from .core.checks import check_choice, check_count, check_positive
from .core.spread import spread
from .core.state import State
from .lazy import from_extra
from .schedules import Absolute, Schedule
from .wording import losses_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .eventlog.plots import Points

MOST_POINTS = 10_000
"""A schedule of more steps is drawn at so many of them, at equal distances."""

Source = State | str | os.PathLike[str]
"""What has a history: a state, or the path of a log."""


@takes_by_name
def plot_history(
    source: Source | Mapping[str, Source], *, metrics: Iterable[str] | str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot the metrics of a training over its epochs; needs matplotlib (the extra: plot).

    There is one panel for train and valid of a metric, such as the loss: train is dashed. Where a value is not
    finite, its curve has a gap and a mark at the edge of the panel. The scale of a new panel is logarithmic where
    positive values differ more than a thousandfold.

    >>> from fsm_train.testing import simulate
    >>> final = simulate([], epochs=3, valid_loss=[1.0, 0.5, 0.25], valid_accuracy=[0.5, 0.75, 0.875])
    >>> ax = plot_history(final)
    >>> [(panel.get_xlabel(), panel.get_ylabel()) for panel in ax.figure.axes]
    [('epoch', 'loss'), ('epoch', 'accuracy')]
    >>> ax.figure.savefig("history.png")

    Args:
        source: the last state of a training, or the path of its log; several by label, to compare them.
        metrics: the names of the metrics to plot; the default is all of them.
        ax: where to plot all of these metrics; by default a new figure with a panel for each.

    Returns:
        The axes; of a new figure those of its first panel. All of them are in `ax.figure.axes`.

    Raises:
        ValueError: there is no finished epoch.
        LookupError: there is no such metric.
        LogError, OSError: the log cannot be read.
        ModuleNotFoundError: matplotlib is not installed.
    """
    sources = source if isinstance(source, Mapping) else {"": source}
    from_extra("matplotlib.axes", "plot", "plot_history")
    from .eventlog.plots import draw_panel, fit_scale, panels_of

    curves = {str(label): _curves(each) for label, each in sources.items()}
    panels = panels_of(_chosen(curves, metrics))
    if ax is None:
        axes = new_axes("plot_history", len(panels))
        for axis, (title, names) in zip(axes, panels.items(), strict=True):
            draw_panel(axis, title, names, curves)
            fit_scale(axis, names, curves)
        return axes[0]
    names = [name for panel in panels.values() for name in panel]
    draw_panel(ax, " and ".join(panels), names, curves, first=_colours_used(ax))
    return ax


def _curves(source: Source) -> Mapping[str, Points]:
    """The curve of each metric of a training."""
    from .eventlog.plots import points_of

    if isinstance(source, State):
        history = source.history
        return points_of(enumerate(history, 1), losses_first(name for metrics in history for name in metrics))
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"plot_history takes the last state of a training, the path of a log, or several of them by label, and "
            f"was given {kind_of(source)}: write plot_history(final), or plot_history('run.jsonl')"
        )
    from .eventlog.render import summarize

    epochs = summarize(source).epochs
    return points_of(((epoch.epoch, epoch.metrics) for epoch in epochs), epochs.names)


def _chosen(
    curves: Mapping[str, Mapping[str, Points]], metrics: Iterable[str] | str | None
) -> Mapping[str, Mapping[str, Points]]:
    """The curves of these metrics, in the order in which they are given."""
    if metrics is None:
        return curves
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    there_are = losses_first(name for each in curves.values() for name in each)
    if missing := [name for name in names if name not in there_are]:
        raise LookupError(f"there is no metric {missing[0]!r} to plot: there are {', '.join(there_are) or 'none'}")
    return {run: {name: each[name] for name in names if name in each} for run, each in curves.items()}


@takes_by_name
def plot_schedule(
    schedule: Callable[[float], float],
    steps: int,
    *,
    lr: float | None = None,
    by: Literal["step", "iteration", "epoch"] = "step",
    ax: Axes | None = None,
) -> Axes:
    """Plot what a schedule sets in a training of so many steps; needs matplotlib (the extra: plot).

    Several are compared on the same axes: `ax = plot_schedule(a, 1000)`, `plot_schedule(b, 1000, ax=ax)`.

    >>> from fsm_train.schedules import cosine, warmup
    >>> ax = plot_schedule(warmup(100).then(cosine(900)), steps=1_000, lr=0.1)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('step', 'learning rate')

    Args:
        schedule: a schedule, or any function of progress: factors of the optimizer's own value, or with
            `absolute(…)` around it the value itself.
        steps: how many steps, iterations or epochs to plot; the first one has the index 0.
        lr: the optimizer's own learning rate: plot the rates, and not the factors.
        by: what the schedule counts.
        ax: where to plot; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: it is no function of progress.
        ValueError: a number makes no sense.
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_choice("by", by, ("step", "iteration", "epoch"))
    check_count("steps", steps, least=1)
    if isinstance(schedule, Callback) or not callable(schedule):
        raise TypeError(
            f"plot_schedule takes a schedule, and was given {kind_of(schedule)}: write "
            "plot_schedule(cosine(1000), 1000), or give it the function that schedule(lr=…) has"
        )
    if lr is not None:
        check_positive("lr", lr)
    if lr is not None and isinstance(schedule, Absolute):
        raise ValueError(f"lr={lr!r}: {schedule!r} gives the values themselves, not factors of lr: leave it out")
    from_extra("matplotlib.axes", "plot", "plot_schedule")
    from .eventlog.plots import draw_curve

    scale = 1.0 if lr is None else lr
    axis = new_axes("plot_schedule")[0] if ax is None else ax
    colour = f"C{_colours_used(axis)}"
    points = [(step, scale * float(schedule(step))) for step in spread(steps, MOST_POINTS)]
    draw_curve(axis, repr(schedule), points, colour)
    length = schedule.length if isinstance(schedule, Schedule) else None
    if length is not None and length < steps - 1:
        axis.axvline(length, color=colour, linestyle=":", label=f"its end, at {by} {length}")
    factor = "value" if isinstance(schedule, Absolute) else "factor of the optimizer's own value"
    axis.set(xlabel=by, ylabel=factor if lr is None else "learning rate")
    axis.legend()
    return axis


def _colours_used(axis: Axes) -> int:
    """How many colours of the cycle are on these axes already: what is added gets another one."""
    return len({line.get_color() for line in axis.lines})


def new_axes(who: str, panels: int = 1) -> list[Axes]:
    """The axes of a new figure of pyplot, which `plt.show()` and a notebook show.

    Args:
        who: draws, by name.
        panels: how many axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    pyplot = from_extra("matplotlib.pyplot", "plot", who)
    from .eventlog.plots import axes_of, size_of

    return axes_of(pyplot.figure(figsize=size_of(panels), layout="constrained"), panels)
