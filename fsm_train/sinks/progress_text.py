"""What progress shows, as text: the row of a finished epoch, the bar of the current one, and how the training ended.

Rule of this file: pure functions of states and numbers. Nothing here prints, and nothing knows a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import attrs

from ..core.phase import STOP_FLAGS, Phase
from ..core.state import Hyper, State
from ..core.transition import Transition
from ..wording import aligned_number, duration, ending, learning_rate, losses_first, reached_limit

_VALIDATING = frozenset({Phase.VALID_BEGIN, Phase.VALID_BATCH_END})
_MIN_WIDTHS = {"epoch": 5, "time": 6}
_MIN_NUMBER_WIDTH = 10


@attrs.frozen
class Row:
    """A finished epoch.

    Attributes:
        epoch: its number, out of those of the plan.
        metrics: by name.
        lr: the learning rate; "" if there is none.
        time: how long it took.
    """

    epoch: str
    metrics: Mapping[str, str]
    lr: str
    time: str


@attrs.frozen
class Bar:
    """The current epoch.

    Attributes:
        label: which epoch it is, and which step where the plan limits steps.
        done: its finished batches.
        total: its batches; None if that is not known.
        details: further texts: loss, speed, remaining time.
    """

    label: str
    done: int
    total: int | None
    details: tuple[str, ...]


def row_of(state: State, *, lr: Hyper | None, seconds: float, metrics: Sequence[str] | None = None) -> Row:
    """The row of the epoch that ends with this state.

    Args:
        state: at EPOCH_END.
        lr: the learning rate of the epoch.
        seconds: how long the epoch took.
        metrics: the names of the metrics to show; None for all.
    """
    names = losses_first(state.metrics) if metrics is None else metrics
    return Row(
        epoch=_out_of(state.epoch, state.plan.epochs),
        metrics={name: aligned_number(state.metrics[name]) for name in names if name in state.metrics},
        lr=learning_rate(lr),
        time=duration(seconds),
    )


def bar_of(
    state: State, *, current: int | None, last_batches: int | None, loss: float | None, speed: float | None
) -> Bar:
    """The bar of the current epoch, or of the next one between two epochs.

    Args:
        state: at any phase.
        current: the index of the current epoch; None between two epochs.
        last_batches: the number of batches of the epoch before, if it is known.
        loss: of the last batch that has one.
        speed: in batches per second.
    """
    epoch = state.epoch if current is None else current
    done = 0 if current is None else state.batch
    remaining = _remaining_batches(state, done, last_batches)
    label = f"epoch {_out_of(epoch + 1, state.plan.epochs)}"
    if state.plan.max_steps is not None:
        label += f"  step {_out_of(state.step, state.plan.max_steps)}"
    details = [] if loss is None else [f"loss {aligned_number(loss)}"]
    if state.phase in _VALIDATING:
        label += f"  validating {state.valid_batch}"
    elif speed:
        details.append(f"{speed:.1f} batches/s" if speed >= 1 else f"{1 / speed:.1f} s/batch")
        details += [f"left {duration(remaining / speed)}"] if remaining else []
    return Bar(label, done, None if remaining is None else done + remaining, tuple(details))


def _remaining_batches(state: State, done: int, last_batches: int | None) -> int | None:
    """The batches that this epoch still has: up to the length of the last epoch, or up to the plan's last step."""
    known = []
    if last_batches is not None and last_batches >= done:
        known.append(last_batches - done)
    if state.plan.max_steps is not None and state.step:
        known.append(math.ceil((state.plan.max_steps - state.step) * state.iteration / state.step))
    return min(known, default=None)


def ending_of(state: State, current: int | None) -> str:
    """How a training came to its final phase, in one line; `current` is the index of the epoch that is unfinished."""
    count, within = (state.epoch, "after") if current is None else (current + 1, "in")
    where = f"{within} epoch {_out_of(count, state.plan.epochs).strip()}" if count else ""
    reason = state.reason.partition("\n")[0].rstrip(": ")
    if state.phase is not Phase.DONE:
        return ending(state.phase.value, where, reason)
    limit = reached_limit(state.plan, state.epoch, state.step)
    return f"all {limit} done" if limit and not reason else ending("stopped", where, reason)


def remarks_of(answers: Mapping[str, Transition]) -> list[str]:
    """What callbacks gave as the reasons of answers that stop nothing: a line for each, with the callback's name.

    >>> remarks_of({"reduce_on_plateau": Transition(hyper={"lr": 0.01}, reason="valid_loss has not improved")})
    ['reduce_on_plateau: valid_loss has not improved']
    """
    said = ((name, answer) for name, answer in answers.items() if answer.reason and not answer.flags & STOP_FLAGS)
    return [f"{name}: {' '.join(answer.reason.split())}" for name, answer in said]


def one_line(row: Row) -> Iterator[str]:
    """The row for a file: each value with its name before it, so that one can search for it."""
    values = {"epoch": row.epoch.strip(), **row.metrics, **({"lr": row.lr} if row.lr else {})}
    yield "  ".join([*(f"{name} {text}" for name, text in values.items()), row.time])


class Columns:
    """Rows under a header. The header is repeated when there is a new metric or a column gets wider.

    Args:
        metrics: the names of metrics that have a column from the start.
        width: the most characters of a line, where columns are no wider than they must; None for any number.
    """

    def __init__(self, metrics: Sequence[str], width: int | None = None) -> None:
        self._metrics = list(metrics)
        self._width = width
        self._widths: dict[str, int] = {}

    def lines(self, row: Row) -> Iterator[str]:
        """The row, after the header where the header is due."""
        self._metrics += [name for name in row.metrics if name not in self._metrics]
        metrics = {name: row.metrics.get(name, "-") for name in self._metrics}
        cells = {"epoch": row.epoch, **metrics, "lr": row.lr or "-", "time": row.time}
        # A column never gets narrower, so that the rows below one another stay aligned.
        least = {name: max(len(name), len(text), self._widths.get(name, 0)) for name, text in cells.items()}
        widths = {name: max(size, _MIN_WIDTHS.get(name, _MIN_NUMBER_WIDTH)) for name, size in least.items()}
        if self._width is not None and sum(widths.values()) + 2 * (len(widths) - 1) > self._width:
            widths = least
        if widths != self._widths:
            self._widths = widths
            yield "  ".join(name.rjust(width) for name, width in widths.items())
        yield "  ".join(text.rjust(widths[name]) for name, text in cells.items())


def _out_of(count: int, limit: int | None) -> str:
    """The count out of its limit, as wide for 3 of 20 as for 20 of 20; the count alone where there is no limit."""
    return str(count) if limit is None else f"{count:>{len(str(limit))}}/{limit}"
