"""Progress: a bar for the epoch that is under way, and a row for each one that is over.

Rules of this file: what is shown is worked out as text from what was seen, and only the displays at
the end know rich. They import it when somebody asks for progress, because it takes longer to import
than all of the pure half. Nothing here draws by itself: no thread, only what `see` is told.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..core.callback import Callback
from ..core.phase import FINAL, Phase
from ..core.state import Hyper, State
from ..core.transition import Transition
from .base import Sink

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_logger = logging.getLogger("fsm_train")

ROWS_AT = (Phase.EPOCH_BEGIN, Phase.EPOCH_END, *FINAL)
BAR_AT = (Phase.BATCH_END, Phase.VALID_BEGIN, Phase.VALID_BATCH_END, Phase.VALID_END)
VALIDATING = frozenset({Phase.VALID_BEGIN, Phase.VALID_BATCH_END})
LOSSES = ("train_loss", "valid_loss")  # come first, and the other metrics as they were measured
TURNS = frozenset({Phase.EPOCH_BEGIN, Phase.VALID_BEGIN, Phase.VALID_END})


def progress(*, interval: float = 0.1, console: Console | None = None, metrics: Sequence[str] | None = None) -> Sink:
    """Show how far the training is: a bar for the epoch under way, and a row for each one that is over.

    In a terminal the finished rows are printed for good and only the bar below them is live, so that
    a thousand epochs scroll like any other output. In a notebook the bar stands above the rows. Without
    either (a file, a pipe, a dumb terminal) there is one line per epoch, and between them nothing is
    looked at and no loss is read. At the end a line says why it ended.

    What the package logs meanwhile (what is trained, and what would make it faster) is shown too,
    unless the program has a logging handler of its own.

    How many batches an epoch has is learned from the one before; in the first one the bar is sized
    only if the plan has `max_steps`. Times are those of this call of `run`: of an epoch that was
    suspended, the row shows the part after the suspension. The learning rate of a row is the one that
    its epoch ended with, before anything that was decided for the next.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(loss=0.5, valid_loss=[0.8, 0.4])
    >>> final = run(start(work, epochs=2), sinks=[progress(metrics=["valid_loss"])])
    epoch 1/2  valid_loss 0.8000  lr 0.1  ...
    epoch 2/2  valid_loss 0.4000  lr 0.1  ...
    all 2 epochs done  ...

    Args:
        interval: at least so many seconds between two drawings of the bar, and two readings of the loss.
        console: where to show it; standard output if nothing is said.
        metrics: the names of the metrics to show, in this order; all if nothing is said.

    Raises:
        ValueError: the interval is negative or not finite.
        TypeError: `metrics` is one name, or something in it is not a name.
    """
    if not (math.isfinite(interval) and interval >= 0):
        raise ValueError(f"interval={interval!r}: give seconds, 0 to draw after every batch")
    if isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics or ()):
        raise TypeError(f"metrics={metrics!r}: give a list of names, for example ['train_loss', 'valid_loss']")
    if console is None:
        from rich.console import Console

        console = Console()
    return Progress(console, interval, None if metrics is None else tuple(metrics))


class Progress(Sink):
    """The sink that `progress` makes: it remembers what it saw, and tells a display what to show."""

    def __init__(self, console: Console, interval: float, metrics: tuple[str, ...] | None) -> None:
        self.console = console
        self.interval = interval
        self.metrics = metrics
        live = console.is_jupyter or console.is_interactive
        # Without a bar nobody looks at batches: then the machine need not stop there, nor read a loss.
        self.at = (*ROWS_AT, *BAR_AT) if live else ROWS_AT
        self.needs = frozenset({"loss"}) if live else frozenset[str]()

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        self.seen = _Seen.at_the_start(state, time.monotonic())
        self.display = _display(self.console, self.metrics or ())
        self.overheard = _Overheard(self.display.say)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        seen, now = self.seen, time.monotonic()
        seen.note(state, answers, now)
        if state.phase in FINAL:
            self.display.say(f"{ending(state, seen.epoch)}  {duration(now - seen.began)}")
        elif state.phase is Phase.EPOCH_END:
            self.display.row(self._row(state, now - seen.epoch_began))
            if not _fulfilled(state):  # the bar of the next epoch, whose first batch may take its time
                self.display.bar(_bar(state, seen))
        elif self._due(state.phase, now):
            self.display.bar(_bar(state, seen))

    def close(self) -> None:
        self.overheard.stop()
        self.display.close()

    def _due(self, phase: Phase, now: float) -> bool:
        """Whether to draw: the interpreter throttles the phases of a batch, and this the turns between them."""
        if phase in TURNS:
            if now < self.seen.next_turn:
                return False
            self.seen.next_turn = now + self.interval
        return True

    def _row(self, state: State, seconds: float) -> Row:
        names = dict.fromkeys((*LOSSES, *state.metrics)) if self.metrics is None else self.metrics
        return Row(
            epoch=_of(state.epoch, state.plan.epochs),
            metrics={name: number(state.metrics[name]) for name in names if name in state.metrics},
            lr=_rate(self.seen.lr),
            time=duration(seconds),
        )


@attrs.define
class _Seen:
    """What has to be remembered from one look to the next. Times are in seconds."""

    began: float  # this call of `run`
    epoch_began: float
    epoch: int | None  # the index of the one under way
    usual: int | None  # batches of the epoch before, as far as one can know
    lr: Hyper | None  # in force last
    pace: _Pace
    loss: float | None = None  # of the batch that was looked at last
    next_turn: float = -math.inf  # when the bar may be drawn again at a phase between batches

    @classmethod
    def at_the_start(cls, state: State, now: float) -> _Seen:
        """What one can know before anything happened, of a training that is possibly gone on with."""
        within = state.resume_at not in (None, Phase.EPOCH_END)
        finished = state.iteration - state.batch if within else state.iteration
        return cls(
            began=now,
            epoch_began=now,
            epoch=state.epoch if within else None,
            usual=round(finished / state.epoch) if state.epoch else None,
            lr=state.hyper.get("lr"),
            pace=_Pace(),
        )

    def note(self, state: State, answers: Mapping[str, Transition], now: float) -> None:
        """Take in what this phase says."""
        # Who sets the rate when an epoch has ended sets it for the next one.
        if state.phase is not Phase.EPOCH_END or not any("lr" in answer.hyper for answer in answers.values()):
            self.lr = state.hyper.get("lr")
        match state.phase:
            case Phase.EPOCH_BEGIN:
                self.epoch, self.epoch_began = state.epoch, now
                self.pace.restart()
            case Phase.BATCH_END:
                self.loss = state.facts.get("loss", self.loss)  # a skipped batch has none
                self.pace.reach(now, state.batch)
            case Phase.VALID_END:
                self.pace.restart()
            case Phase.EPOCH_END:
                self.epoch, self.usual = None, state.batch


class _Pace:
    """Batches per second over the last looks."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self.looks: deque[tuple[float, int]] = deque(maxlen=50)

    def restart(self) -> None:
        """Measure anew from the next look on; until the one after it, the rate is the one from before.

        So neither a validation counts nor the first batch after a turn, which waits for the loader.
        """
        self.looks.clear()

    def reach(self, now: float, batch: int) -> None:
        if self.looks:
            then, first = self.looks[0]
            self.rate = (batch - first) / (now - then) if now > then else self.rate
        self.looks.append((now, batch))


@attrs.frozen
class Row:
    """An epoch that is over."""

    epoch: str
    metrics: Mapping[str, str]
    lr: str
    time: str


@attrs.frozen
class Bar:
    """The epoch that is under way: which one, how many of its batches, and what else there is to say."""

    label: str
    done: int
    total: int | None
    details: tuple[str, ...]


def _bar(state: State, seen: _Seen) -> Bar:
    epoch = state.epoch if seen.epoch is None else seen.epoch
    done = 0 if seen.epoch is None else state.batch
    left = _batches_left(state, done, seen.usual)
    label = f"epoch {_of(epoch + 1, state.plan.epochs)}"
    if state.plan.max_steps is not None:
        label += f"  step {_of(state.step, state.plan.max_steps)}"
    details = [] if seen.loss is None else [f"loss {number(seen.loss)}"]
    if state.phase in VALIDATING:
        label += f"  validating {state.valid_batch}"
    elif seen.pace.rate:
        details.append(_speed(seen.pace.rate))
        details += [f"left {duration(left / seen.pace.rate)}"] if left else []
    return Bar(label, done, None if left is None else done + left, tuple(details))


def _batches_left(state: State, done: int, usual: int | None) -> int | None:
    """The batches that this epoch has still to go: to where the last one ended, or the steps of the plan."""
    known = []
    if usual is not None and usual >= done:
        known.append(usual - done)
    if state.plan.max_steps is not None and state.step:
        known.append(math.ceil((state.plan.max_steps - state.step) * state.iteration / state.step))
    return min(known, default=None)


def ending(state: State, epoch: int | None) -> str:
    """Why a training came to its final phase, in one line; `epoch` is the index of the one it broke off in."""
    count, within = (state.epoch, "after") if epoch is None else (epoch + 1, "in")
    where = f" {within} epoch {_of(count, state.plan.epochs).strip()}" if count else ""
    why = state.reason.partition("\n")[0].rstrip(": ")
    if state.phase is Phase.DONE and not why:
        return _fulfilled(state) or f"stopped{where}"
    what = "stopped" if state.phase is Phase.DONE else state.phase.value
    return f"{what}{where}: {why}" if why else f"{what}{where}"


def _fulfilled(state: State) -> str:
    """Which limit of the plan was reached, if one was."""
    plan = state.plan
    for count, limit, noun in ((state.epoch, plan.epochs, "epoch"), (state.step, plan.max_steps, "step")):
        if limit is not None and count >= limit:
            return f"all {limit} {noun}{'s' * (limit != 1)} done"
    return ""


def in_one_line(row: Row) -> Iterator[str]:
    """The row for a file: each value by its name, so that one can search for it."""
    named = {"epoch": row.epoch.strip(), **row.metrics, **({"lr": row.lr} if row.lr else {})}
    yield "  ".join([*(f"{name} {text}" for name, text in named.items()), row.time])


class Columns:
    """Rows under a header, which comes again when there is a new metric or a column needs more room."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)
        self.widths: dict[str, int] = {}

    def lines(self, row: Row) -> Iterator[str]:
        self.metrics += [name for name in row.metrics if name not in self.metrics]
        metrics = {name: row.metrics.get(name, "-") for name in self.metrics}
        cells = {"epoch": row.epoch, **metrics, "lr": row.lr or "-", "time": row.time}
        room = {"epoch": 5, "time": 6}
        widths = {
            name: max(len(name), len(text), self.widths.get(name, room.get(name, 10))) for name, text in cells.items()
        }
        if widths != self.widths:
            self.widths = widths
            yield "  ".join(name.rjust(width) for name, width in widths.items())
        yield "  ".join(text.rjust(widths[name]) for name, text in cells.items())


def number(value: float) -> str:
    """Four digits, with trailing zeros, so that the numbers of a column stand under each other."""
    return f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """Two units at most, without a space: 1.2s, 12m03s, 1h02m."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _rate(lr: Hyper | None) -> str:
    """The learning rate; of several groups the lowest and the highest."""
    if lr is None:
        return ""
    low, high = (min(lr), max(lr)) if isinstance(lr, tuple) else (lr, lr)
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"


def _speed(rate: float) -> str:
    return f"{rate:.1f} batches/s" if rate >= 1 else f"{1 / rate:.1f} s/batch"


def _of(count: int, limit: int | None) -> str:
    """The count out of its limit, as wide for 3 of 20 as for 20 of 20; the count where there is no limit."""
    return str(count) if limit is None else f"{count:>{len(str(limit))}}/{limit}"


class _Overheard(logging.Handler):
    """Says what the package logs, from INFO on, where nobody else would."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.say = say
        self.before: int | None = None
        if not _logger.hasHandlers():
            self.before = _logger.level
            _logger.addHandler(self)
            _logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(BrokenPipeError):  # which the next row finds out for itself
            for line in record.getMessage().splitlines():
                self.say(line)

    def stop(self) -> None:
        if self.before is not None:
            _logger.removeHandler(self)
            _logger.setLevel(self.before)


def _display(console: Console, metrics: Sequence[str]) -> _Lines:
    if console.is_jupyter:
        return _Notebook(console, Columns(metrics).lines)
    if console.is_interactive:
        return _Terminal(console, Columns(metrics).lines)
    return _Lines(console, in_one_line)


class _Lines:
    """A file or a pipe: what is over is a line, never wrapped, and what is under way is not shown."""

    def __init__(self, console: Console, layout: Callable[[Row], Iterable[str]]) -> None:
        self.console = console
        self.layout = layout

    def row(self, row: Row) -> None:
        for line in self.layout(row):
            self.say(line)

    def bar(self, bar: Bar) -> None:
        """There is none."""

    def say(self, line: str) -> None:
        try:
            self.console.out(line, highlight=False)
        except SystemExit as leaving:
            # With this rich answers that nobody reads the pipe any more. A training does not end for that.
            raise BrokenPipeError("nobody reads its output any more") from leaving

    def close(self) -> None:
        """Nothing is open."""


class _Terminal(_Lines):
    """Lines that are printed for good, and a live bar below them."""

    def __init__(self, console: Console, layout: Callable[[Row], Iterable[str]]) -> None:
        from rich.live import Live

        super().__init__(console, layout)
        # What goes to a file, as with 2>errors.txt, stays out of the terminal.
        out, err = (stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
        self.live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=out, redirect_stderr=err)
        self.live.start()

    def bar(self, bar: Bar) -> None:
        # Not to the very edge, where the ^C of a person who suspends the training would begin a new line.
        self.live.update(_drawn(bar, self.console.width - 2), refresh=True)

    def close(self) -> None:
        self.live.stop()


class _Notebook(_Lines):
    """A bar that is updated in its place, and the lines as plain output below it.

    Rich's own live display needs ipywidgets, and its `print` makes one output per line, of which
    notebooks show only so many; IPython's display handle and the built-in `print` need neither.
    """

    def __init__(self, console: Console, layout: Callable[[Row], Iterable[str]]) -> None:
        from rich.text import Text

        super().__init__(console, layout)
        self.nothing = Text("")
        self.handle = importlib.import_module("IPython.display").display(self.nothing, display_id=True)

    def bar(self, bar: Bar) -> None:
        self.handle.update(_drawn(bar))

    def say(self, line: str) -> None:
        print(line)

    def close(self) -> None:
        self.handle.update(self.nothing)


def _drawn(bar: Bar, width: int | None = None) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    count = str(bar.done) if bar.total is None else f"{bar.done}/{bar.total}"
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.width = width
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(ratio=1, min_width=4)
    for _ in (count, *bar.details):
        grid.add_column(no_wrap=True, justify="right")
    grid.add_row(bar.label, ProgressBar(total=bar.total, completed=bar.done), count, *bar.details)
    return grid
