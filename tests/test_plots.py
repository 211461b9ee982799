"""Pictures of histories and schedules: what is on their axes, also of values that are not finite."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import matplotlib
import pytest

from fsm_train import LrFound, Scripted, State, plot_history, plot_schedule, run, start
from fsm_train.callbacks import schedule
from fsm_train.plots import MOST_POINTS
from fsm_train.schedules import absolute, constant, cosine, linear, warmup
from fsm_train.testing import simulate

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    """Each test has figures of its own."""
    yield
    pyplot.close("all")


def trained(**settings: Any) -> State:
    """Four epochs, in which the loss is not finite for a while, and of which three measured an accuracy."""
    scripted = {"loss": 2.0, "valid_loss": [1.0, NAN, INF, 0.5], **settings}
    return simulate([], epochs=len(scripted["valid_loss"]), **scripted)


def lines(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn, by label."""
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def test_each_metric_has_a_panel_with_names() -> None:
    """Train and valid of one metric are in one panel, over the epochs, which are counted from 1."""
    ax = plot_history(trained(valid_loss=[1.0, 0.5], valid_accuracy=[0.25, 0.75]))

    loss, accuracy = ax.figure.axes
    assert ax is loss
    assert [(panel.get_xlabel(), panel.get_ylabel()) for panel in (loss, accuracy)] == [
        ("epoch", "loss"),
        ("epoch", "accuracy"),
    ]
    assert lines(loss) == {"train_loss": ([1, 2], [2.0, 2.0]), "valid_loss": ([1, 2], [1.0, 0.5])}
    assert lines(accuracy) == {"valid_accuracy": ([1, 2], [0.25, 0.75])}
    assert [line.get_linestyle() for line in loss.lines] == ["--", "-"]
    assert all(panel.get_legend() for panel in (loss, accuracy))


def test_what_is_not_finite_is_seen() -> None:
    """The curve has a gap there, and a mark at the edge, which the legend explains."""
    drawn = lines(plot_history(trained(valid_loss=[1.0, NAN, INF, 0.5, -INF, NAN]), metrics="valid_loss"))

    epochs, values = drawn["valid_loss"]
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert [math.isnan(value) for value in values] == [False, True, True, False, True, True]
    assert drawn["valid_loss is nan"] == ([2, 6], [0.97, 0.97])
    assert drawn["valid_loss is inf"] == ([3], [0.97])
    assert drawn["valid_loss is -inf"] == ([5], [0.03])


@pytest.mark.parametrize(("epochs", "marked"), [(40, [*range(40)]), (41, [0, 21])])
def test_a_point_between_gaps_is_seen(epochs: int, marked: list[int]) -> None:
    """A line through it would have no length: it has a mark. In a long history no other point has one."""
    values = [NAN if index in (1, 20, 22) else 1.0 for index in range(epochs)]

    (line, _) = plot_history(trained(valid_loss=values), metrics=["valid_loss"]).lines

    assert line.get_markevery() == marked
    assert line.get_marker() == "."


def test_a_long_curve_without_gaps_is_a_line() -> None:
    """Hundreds of marks would hide it."""
    (line,) = plot_history(trained(valid_loss=[1.0] * 41), metrics="valid_loss").lines

    assert (line.get_markevery(), line.get_marker()) == ([], "")


def test_epochs_without_a_measurement_are_passed_over() -> None:
    """They are no gap: nothing was measured there, whatever a later epoch says."""
    final = trained()
    history = ({"train_loss": 3.0}, {"train_loss": 2.0, "valid_loss": 1.0}, {"train_loss": 1.0})

    drawn = lines(plot_history(_with_history(final, history)))

    assert drawn == {"train_loss": ([1, 2, 3], [3.0, 2.0, 1.0]), "valid_loss": ([2], [1.0])}


def _with_history(state: State, history: Any) -> State:
    return attrs.evolve(state, history=history)


def test_a_label_with_an_underscore_is_in_the_legend() -> None:
    """A legend of matplotlib leaves out those that begin with one."""
    legend = plot_history({"_first": trained(), "second": trained()}, metrics="train_loss").get_legend()

    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_first: train_loss", "second: train_loss"]


def test_a_log_is_drawn_as_the_state_is(tmp_path: Path) -> None:
    """It has the same history, whether its path is text or not."""
    log = tmp_path / "run.jsonl"
    work = Scripted(loss=2.0, valid_loss=[1.0, NAN, 0.5], valid_accuracy=[0.1, 0.2, 0.3])
    final = run(start(work, epochs=3), log=log)
    pictures = [plot_history(source).figure for source in (final, log, str(log))]

    one, *others = [[repr(lines(panel)) for panel in picture.axes] for picture in pictures]
    assert len(one) == 2
    assert others == [one, one]


def test_several_are_compared_by_label() -> None:
    """Each has a colour of its own, and its label stands before the name of the metric."""
    ax = plot_history({"a": trained(valid_loss=[1.0, 0.5]), "b": trained(valid_loss=[2.0])}, metrics=["valid_loss"])

    assert lines(ax) == {"a: valid_loss": ([1, 2], [1.0, 0.5]), "b: valid_loss": ([1], [2.0])}
    assert [line.get_color() for line in ax.lines] == ["C0", "C1"]


def test_one_of_several_may_lack_a_metric() -> None:
    """It is not drawn in that panel, and keeps its place in the others."""
    ax = plot_history({"a": trained(valid_loss=[1.0]), "b": trained(valid_loss=[1.0], valid_accuracy=[0.5])})

    assert [[*lines(panel)] for panel in ax.figure.axes] == [
        ["a: train_loss", "a: valid_loss", "b: train_loss", "b: valid_loss"],
        ["b: valid_accuracy"],
    ]


def test_own_axes_take_all_metrics() -> None:
    """Each metric then has a colour of its own, and none that is there already."""
    _, own = pyplot.subplots()
    own.plot([1, 2], [0.0, 0.0])

    assert plot_history(trained(valid_loss=[1.0], valid_accuracy=[0.5]), ax=own) is own
    assert [line.get_color() for line in own.lines[1:]] == ["C1", "C1", "C2"]
    assert own.get_ylabel() == "loss and accuracy"
    assert len(own.figure.axes) == 1


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1e6, 2.0, 1.0], "log"),
        ([999.0, 2.0, 1.0], "linear"),
        ([1e6, 1.0, 0.0], "linear"),
        ([1e6, 1.0, -1.0], "linear"),
        ([1e6, NAN, INF], "linear"),
        ([NAN], "linear"),
    ],
)
def test_one_large_value_hides_no_others(values: list[float], scale: str) -> None:
    """The first loss may be a million: then the scale is logarithmic, if it can be. Axes of the user keep theirs."""
    final = trained(valid_loss=values)
    _, own = pyplot.subplots()

    assert plot_history(final, metrics="valid_loss").get_yscale() == scale
    assert plot_history(final, metrics="valid_loss", ax=own).get_yscale() == "linear"


def test_a_name_is_shown_as_it_is() -> None:
    """Dollars are no mathematics in it."""
    history = _with_history(trained(), ({"valid_$x": 1.0},))

    ax = plot_history(history)
    assert (ax.get_ylabel(), [*lines(ax)]) == (r"\$x", [r"valid_\$x"])
    ax.figure.canvas.draw()


def test_many_metrics_stand_in_columns() -> None:
    """So that the picture does not get higher than a screen."""
    history = _with_history(trained(), ({f"valid_{number}": 1.0 for number in range(7)},))
    figure = plot_history(history).figure
    figure.canvas.draw()

    columns = {round(panel.get_position().x0, 2) for panel in figure.axes}
    assert (len(figure.axes), len(columns), tuple(figure.get_size_inches())) == (7, 3, (13.5, 9.0))


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"source": simulate([], epochs=0)}, ValueError, "there is no finished epoch to draw"),
        ({"source": trained(), "metrics": "valid_los"}, LookupError, "no metric 'valid_los' to plot: there are train_"),
        ({"source": simulate([], epochs=0), "metrics": "a"}, LookupError, "there are none"),
        ({"source": trained().history}, TypeError, "given a History: write plot_history.final."),
        ({"source": "missing.jsonl"}, OSError, "No such file"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    """And no empty figure is left over."""
    with pytest.raises(kind, match=sentence):
        plot_history(**arguments)
    assert pyplot.get_fignums() == []


# --------------------------------------------------------------------------------------- schedules


def test_a_schedule_is_drawn_step_by_step() -> None:
    """As factors, or with a learning rate as rates; each step with its own value."""
    warm = warmup(2, start=0.5)

    factors, rates = plot_schedule(warm, 3), plot_schedule(warm, 3, lr=0.1)

    assert lines(factors) == {"warmup(2, start=0.5)": ([0, 1, 2], [0.5, 0.75, 1.0])}
    assert lines(rates)["warmup(2, start=0.5)"][1] == pytest.approx([0.05, 0.075, 0.1])
    assert (factors.get_xlabel(), factors.get_ylabel()) == ("step", "factor of the optimizer's own value")
    assert (rates.get_xlabel(), rates.get_ylabel()) == ("step", "learning rate")


def test_values_are_no_factors() -> None:
    """`absolute` gives the value itself, and any function is a schedule; what it counts is a label."""
    ax = plot_schedule(absolute(linear(0.5, 1, 2)), 3, by="epoch")

    assert lines(ax) == {"absolute(linear(0.5, 1, 2))": ([0, 1, 2], [0.5, 0.75, 1.0])}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "value")
    assert [values for _, values in lines(plot_schedule(lambda step: step / 2, 3)).values()] == [[0.0, 0.5, 1.0]]


def test_an_end_before_the_last_step_is_marked() -> None:
    """From there a schedule holds its last value."""
    assert "its end, at step 3" in lines(plot_schedule(cosine(3), 10))
    for whole in (plot_schedule(cosine(9), 10), plot_schedule(constant(), 10)):
        assert len(lines(whole)) == 1


def test_several_schedules_are_compared_on_one_axes() -> None:
    """Each in a colour of its own."""
    ax = plot_schedule(cosine(3), 10)

    assert plot_schedule(constant(), 10, ax=ax) is ax
    assert [line.get_color() for line in ax.lines] == ["C0", "C0", "C1"]


def test_a_long_schedule_is_drawn_from_its_first_step_to_its_last() -> None:
    """At so many steps, each of which is a whole one."""
    ((steps, values),) = lines(plot_schedule(linear(1, 0, 10**7), 10**7)).values()

    assert (len(steps), steps[0], steps[-1]) == (MOST_POINTS, 0, 10**7 - 1)
    assert all(step == int(step) for step in steps)
    assert (values[0], values[-1]) == (1.0, pytest.approx(1e-7))


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"schedule": 0.1}, TypeError, "takes a schedule, and was given a float"),
        ({"schedule": schedule(lr=cosine(9))}, TypeError, "the function that schedule.lr=…. has"),
        ({"steps": 0}, ValueError, "steps=0: it is a whole number from 1"),
        ({"by": "hour"}, ValueError, "by='hour': 'step', 'iteration' or 'epoch'"),
        ({"lr": 0.0}, ValueError, "lr=0.0: it is a positive number"),
        ({"schedule": absolute(cosine(9)), "lr": 0.1}, ValueError, "not factors of lr: leave it out"),
    ],
)
def test_what_is_no_schedule_is_said(arguments: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    """Before a figure is made."""
    with pytest.raises(kind, match=sentence):
        plot_schedule(**{"schedule": cosine(9), "steps": 9, **arguments})
    assert pyplot.get_fignums() == []


def test_a_schedule_that_is_not_finite_somewhere_shows_it() -> None:
    """As a history does."""
    marks = [drawn for label, drawn in lines(plot_schedule(lambda step: NAN if step == 1 else 1.0, 3)).items()][1:]

    assert marks == [([1], [0.97])]


# ------------------------------------------------------------------------------- without matplotlib


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_history(trained()),
        lambda: plot_schedule(cosine(9), 9),
        lambda: LrFound((0.1, 1.0), (1.0, 2.0), (1.0, 2.0)).plot(),
    ],
)
def test_a_missing_extra_is_a_sentence(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says who needs it, and what to install."""
    for module in ("matplotlib.axes", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ModuleNotFoundError, match=r"plot.* needs matplotlib.*: pip install 'fsm-train\[plot\]'"):
        draw()
