"""Progress: a bar for the current epoch, and a row for each finished one.

Rule of this file: it decides when to show something. What is shown is in progress_text.py, and where in displays.py,
which is imported by `progress()`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..core.callback import Callback
from ..core.checks import check_bool, check_number
from ..core.phase import FINAL, Phase
from ..core.state import State
from ..core.transition import Transition
from ..core.workload import Workload
from ..wording import duration, reached_limit
from .base import Sink
from .current_epoch import CurrentEpoch
from .progress_text import Bar, bar_of, ending_of, remarks_of, row_of

if TYPE_CHECKING:
    from rich.console import Console

    from .displays import PlainDisplay
    from .overview import Overview
    from .summary import Summary

_logger = logging.getLogger("fsm_train")

ROWS_AT = (Phase.EPOCH_BEGIN, Phase.EPOCH_END, *FINAL)
BAR_AT = (Phase.BATCH_END, Phase.VALID_BEGIN, Phase.VALID_BATCH_END, Phase.VALID_END)
BETWEEN_BATCHES = frozenset({Phase.EPOCH_BEGIN, Phase.VALID_BEGIN, Phase.VALID_END})
"""Phases with a bar that the interpreter does not throttle: it throttles the phases of a batch only."""


def progress(
    *,
    interval: float = 0.1,
    console: Console | None = None,
    metrics: Sequence[str] | None = None,
    summary: bool | None = None,
) -> Sink:
    """Show how far the training is: a bar for the current epoch, and a row for each finished one.

    In a terminal the rows are permanent and only the bar below them is live, so that a thousand epochs
    scroll like any other output. In a notebook the bar stands above the rows. Elsewhere (a file, a
    pipe, a dumb terminal) there is one line per epoch; then batches are not watched and no loss is
    read. The last line says how the training ended.

    In a terminal, tables stand before the first row: the parts of the model with their parameters, who is consulted or
    looks at which phase, and which facts are measured for that, at what cost. After the last line stand the best values
    of what was monitored, and where log and checkpoints are.

    Messages of the logger "fsm_train" (a summary of the training, and advice to make it faster) are
    shown too, unless the program has a logging handler of its own.

    What a callback says at the end of an epoch, as the reason of an answer that does not stop the training, is shown
    below the row of the epoch.

    The number of batches of an epoch is that of the epoch before. In the first epoch the bar has a
    length only if the plan has `max_steps`. Times are those of this call of `run`: the row of an epoch
    that was suspended shows the part after the suspension. The learning rate of a row is that of the
    last step of its epoch.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(loss=0.5, valid_loss=[0.8, 0.4])
    >>> final = run(start(work, epochs=2), sinks=[progress(metrics=["valid_loss"])])
    epoch 1/2  valid_loss 0.8000  lr 0.1  ...
    epoch 2/2  valid_loss 0.4000  lr 0.1  ...
    all 2 epochs done  ...

    Args:
        interval: the least number of seconds between two updates of the bar, and two readings of the loss.
        console: where to show it; the default is standard output.
        metrics: the names of the metrics to show, in this order; the default is all of them.
        summary: whether the tables are shown, True also in a file or a notebook; the default is in a terminal alone,
            and before the rows once for each workload.

    Raises:
        ValueError: the interval is negative or not finite, or `summary` is no bool.
        TypeError: `metrics` is a single name, or contains something that is not a name.
    """
    check_number("interval", interval, lambda x: 0 <= x < math.inf, "give seconds, 0 to draw after every batch")
    if isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics or ()):
        raise TypeError(f"metrics={metrics!r}: give a list of names, for example ['train_loss', 'valid_loss']")
    if summary is not None:
        check_bool("summary", summary)
    from . import displays

    names = None if metrics is None else tuple(metrics)
    console = displays.standard_output() if console is None else console
    live = console.is_jupyter or console.is_interactive
    watched = console.is_interactive and not console.is_jupyter and console.file.isatty()
    tables = watched if summary is None else summary
    return Progress(lambda: displays.open_display(console, names or ()), live, interval, names, tables)


class Progress(Sink):
    """The sink that `progress` makes: it keeps what it needs of earlier phases, and tells a display what to show.

    Args:
        open_display: opens the display, at each call of `run`.
        live: whether the display has a bar.
        interval: the least number of seconds between two updates of the bar.
        metrics: the names of the metrics to show; None for all.
        tables: whether tables are shown at the beginning and at the end.

    Attributes:
        at, needs, interval: as every sink has them.
    """

    draws = False

    def __init__(
        self,
        open_display: Callable[[], PlainDisplay],
        live: bool,
        interval: float,
        metrics: tuple[str, ...] | None,
        tables: bool = False,
    ) -> None:
        self._open_display = open_display
        self._metrics = metrics
        self._tables = tables
        self._summary: Summary | None = None
        self.interval = interval
        # Without a bar the phases of a batch are not watched: then they can be fused, and no loss is read.
        self.at = (*ROWS_AT, *BAR_AT) if live else (*ROWS_AT, Phase.VALID_END) if tables else ROWS_AT
        self.needs = frozenset({"loss"}) if live else frozenset[str]()

    def preview(self, overview: Overview, workload: Workload) -> None:
        """A run begins: who looks where, what is measured, and what is trained. Called before `open`."""
        if self._tables:
            from .summary import Summary  # which is of no use where nobody watches

            self._summary = Summary(overview, workload)

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        self._status = _Status.at_start(state, time.monotonic())
        self._display = self._open_display()
        self._log_handler = _LogHandler(self._display.show_text)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        status, now = self._status, time.monotonic()
        status.update(state, now)
        if self._summary is not None:
            self._show(self._summary.see(state, self._display.width))
        if state.phase in FINAL:
            seconds = now - status.run_start
            self._display.show_line(f"{ending_of(state, status.epoch.index)}  {duration(seconds)}")
            if self._summary is not None:
                self._show(self._summary.end(state, seconds, self._display.width))
        elif state.phase is Phase.EPOCH_END:
            seconds = now - status.epoch_start
            lr = status.epoch.hyper_used(state).get("lr")
            self._display.show_row(row_of(state, lr=lr, seconds=seconds, metrics=self._metrics))
            for remark in remarks_of(answers):
                self._display.show_line(remark)
            # The first batch of the next epoch can take a while: its bar is shown now.
            if not reached_limit(state.plan, state.epoch, state.step):
                self._display.show_bar(status.bar(state))
        elif self._is_due(state.phase, now):
            self._display.show_bar(status.bar(state))

    def _show(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._display.show_line(line)

    def close(self) -> None:
        self._summary = None  # which may hold on to the model
        self._log_handler.detach()
        self._display.close()

    def _is_due(self, phase: Phase, now: float) -> bool:
        """Whether the bar is to be updated: always at the phases that the interpreter throttles."""
        if phase in BETWEEN_BATCHES:
            if now < self._status.next_update:
                return False
            self._status.next_update = now + self.interval
        return True


@attrs.define
class _Status:
    """What is kept from one phase to the next. Times are in seconds of the monotonic clock.

    Attributes:
        run_start: when this call of `run` began.
        epoch_start: when the current epoch began, or was resumed.
        epoch: the epoch under way.
        last_batches: the number of batches of the epoch before; of a resumed training, the mean of all before.
        throughput: batches per second.
        loss: of the last batch that has one.
        next_update: when the bar can be updated again at a phase between batches.
    """

    run_start: float
    epoch_start: float
    epoch: CurrentEpoch
    last_batches: int | None
    throughput: _Throughput
    loss: float | None = None
    next_update: float = -math.inf

    @classmethod
    def at_start(cls, state: State, now: float) -> _Status:
        """What the state tells at the start of `run`; it can be that of a resumed training."""
        epoch = CurrentEpoch.at_start(state)
        iterations = state.iteration if epoch.index is None else state.iteration - state.batch
        return cls(
            run_start=now,
            epoch_start=now,
            epoch=epoch,
            last_batches=round(iterations / state.epoch) if state.epoch else None,
            throughput=_Throughput(),
        )

    def update(self, state: State, now: float) -> None:
        """Keep what this phase tells."""
        match state.phase:
            case Phase.EPOCH_BEGIN:
                self.epoch_start = now
                self.throughput.restart()
            case Phase.BATCH_END:
                self.loss = state.facts.get("loss", self.loss)  # a skipped batch has none
                self.throughput.add(now, state.batch)
            case Phase.VALID_END:
                self.throughput.restart()
            case Phase.EPOCH_END:
                self.last_batches = state.batch
        self.epoch = self.epoch.after(state)

    def bar(self, state: State) -> Bar:
        speed = self.throughput.batches_per_second
        return bar_of(state, current=self.epoch.index, last_batches=self.last_batches, loss=self.loss, speed=speed)


class _Throughput:
    """Batches per second, over the last samples.

    Attributes:
        batches_per_second: None until there are two samples.
    """

    SAMPLES = 50

    def __init__(self) -> None:
        self.batches_per_second: float | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=self.SAMPLES)

    def restart(self) -> None:
        """Measure from the next sample on; until the one after it, the old value stays.

        So neither a validation counts nor the first batch of an epoch, which waits for the loader.
        """
        self._samples.clear()

    def add(self, now: float, batch: int) -> None:
        """Add a sample: the time, and the finished batches of the epoch."""
        if self._samples:
            first_time, first_batch = self._samples[0]
            if now > first_time:
                self.batches_per_second = (batch - first_batch) / (now - first_time)
        self._samples.append((now, batch))


class _LogHandler(logging.Handler):
    """Shows messages of the package from INFO on, unless the program has a logging handler of its own.

    Args:
        show_text: shows a line of text.
    """

    def __init__(self, show_text: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._show_text = show_text
        self._level_before: int | None = None
        if not _logger.hasHandlers():
            self._level_before = _logger.level
            _logger.addHandler(self)
            _logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(BrokenPipeError):  # the next row raises it too, and the sink is switched off then
            for line in record.getMessage().splitlines():
                self._show_text(line)

    def detach(self) -> None:
        """Leave the logger as it was."""
        if self._level_before is not None:
            _logger.removeHandler(self)
            _logger.setLevel(self._level_before)
