"""Where progress is shown: a file, a terminal or a notebook.

Rule of this file: of the sinks, it alone knows rich, and only `progress()` imports it, because rich takes longer to
import than all of the pure half. No display draws by itself: there is no thread.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .progress_text import Bar, Columns, Row, one_line


def standard_output() -> Console:
    """A console for standard output, with what rich finds out about it."""
    return Console()


class PlainDisplay:
    """For a file or a pipe: one line per epoch, never wrapped, and no bar.

    Args:
        console: where to print.
        layout: turns a row into lines.
    """

    def __init__(self, console: Console, layout: Callable[[Row], Iterable[str]] = one_line) -> None:
        self._console = console
        self._layout = layout
        self.width = console.width  # of a line, for what is to fit one

    def show_row(self, row: Row) -> None:
        for line in self._layout(row):
            self.show_line(line)

    def show_bar(self, bar: Bar) -> None:
        """A file has no bar."""

    def show_line(self, line: str) -> None:
        """Print a line as it is.

        Raises:
            BrokenPipeError: the reader of the pipe has ended.
        """
        try:
            self._console.out(line, highlight=False)
        except SystemExit as error:
            # rich exits the program when the reader of the pipe has ended; a training must not end for that.
            raise BrokenPipeError("its output is closed") from error

    def show_text(self, line: str) -> None:
        """Show a message. In a terminal it is broken between words; a file has it on one line, to be searched."""
        self.show_line(line)

    def close(self) -> None:
        """Nothing is open."""


class TerminalDisplay(PlainDisplay):
    """For a terminal: permanent rows, and a live bar below them."""

    def __init__(self, console: Console, layout: Callable[[Row], Iterable[str]]) -> None:
        super().__init__(console, layout)
        # A stream that goes to a file, as with 2>errors.txt, is not redirected to the terminal.
        out, err = (stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=out, redirect_stderr=err)
        streams = [console.file, *(stream for stream, tty in ((sys.stdout, out), (sys.stderr, err)) if tty)]
        self._live.start()
        self._restore_logging = _log_above(console, streams)

    def show_text(self, line: str) -> None:
        # The terminal itself would break it within words.
        for part in textwrap.wrap(line, self.width, break_long_words=False, break_on_hyphens=False) or [line]:
            self.show_line(part)

    def show_bar(self, bar: Bar) -> None:
        # Two columns stay free for the ^C that a terminal shows, which would otherwise start a new line.
        self._live.update(_grid(bar, self._console.width - 2), refresh=True)

    def close(self) -> None:
        self._restore_logging()
        self._live.stop()


class NotebookDisplay(PlainDisplay):
    """For a notebook: a bar that is updated in place, and the rows as plain output below it.

    The live display of rich needs ipywidgets, and its `print` makes one output per line, of which
    notebooks show only a limited number. The display handle of IPython and the built-in `print` need neither.
    """

    def __init__(self, console: Console, layout: Callable[[Row], Iterable[str]]) -> None:
        super().__init__(console, layout)
        self._handle = importlib.import_module("IPython.display").display(Text(""), display_id=True)

    def show_bar(self, bar: Bar) -> None:
        self._handle.update(_grid(bar))

    def show_line(self, line: str) -> None:
        print(line)

    def close(self) -> None:
        self._handle.update(Text(""))


def open_display(console: Console, metrics: Sequence[str]) -> PlainDisplay:
    """The display for this console.

    Args:
        console: where to show it.
        metrics: the names of metrics that have a column from the start.
    """
    if console.is_jupyter:
        return NotebookDisplay(console, Columns(metrics).lines)
    if console.is_interactive:
        return TerminalDisplay(console, Columns(metrics, console.width).lines)
    return PlainDisplay(console)


def _log_above(console: Console, streams: Sequence[object]) -> Callable[[], None]:
    """Let the logging handlers that write to these streams write above the live display of the console instead.

    They hold their streams since before the display, so that redirecting sys.stderr does not reach them.

    Returns:
        A function that restores the handlers.
    """
    named = logging.Logger.manager.loggerDict.values()
    loggers = [logging.getLogger(), *(logger for logger in named if isinstance(logger, logging.Logger))]
    restore: list[Callable[[], object]] = []
    for handler in {id(h): h for logger in loggers for h in logger.handlers}.values():
        stream = getattr(handler, "stream", None)
        if isinstance(handler, logging.StreamHandler) and any(stream is each for each in streams):
            handler.setStream(FileProxy(console, handler.stream))
            restore.append(functools.partial(handler.setStream, stream))
        own = getattr(handler, "console", None)  # as the RichHandler has it
        if isinstance(own, Console) and own is not console and any(own.file is each for each in streams):
            handler.console = console  # type: ignore[attr-defined]
            restore.append(functools.partial(setattr, handler, "console", own))

    def restore_all() -> None:
        for undo in restore:
            undo()

    return restore_all


def _grid(bar: Bar, width: int | None = None) -> Table:
    """The bar as a line that fills the width."""
    count = str(bar.done) if bar.total is None else f"{bar.done}/{bar.total}"
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.width = width
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(ratio=1, min_width=4)
    for _ in (count, *bar.details):
        grid.add_column(no_wrap=True, justify="right")
    grid.add_row(bar.label, ProgressBar(total=bar.total, completed=bar.done), count, *bar.details)
    return grid
