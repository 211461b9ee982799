"""A table of a training as comma-separated values.

Rule of this file: a table that this sink did not write is never written over, and a row is written whole or not at all.
"""

from __future__ import annotations

import csv as csv_format
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TextIO

from ..core.arguments import check_path
from ..core.checks import check_possible
from ..core.phase import Phase
from ..core.state import State
from ..locks import HeldError, Lock, take
from ..wording import escaped
from .points import Point, is_before
from .tracker import Ending, Selection, Setting, Tracker

LEADING = ("phase", "epoch", "step", "iteration")
"""The first columns of each table; the others are numbers by name."""


def csv(
    path: str | PathLike[str], *, facts: Iterable[str] = (), every: int = 50, hyper: Iterable[str] = ("lr",)
) -> Tracker:
    """Write a table of comma-separated values: a row for each epoch, and for each validation within one.

    The columns are `phase`, `epoch` (from 1), `step` (optimizer steps), `iteration` (training batches), and one for
    each metric, hyper-parameter and fact; a new name gets a new column, and a cell is empty where nothing was
    measured. A name that a spreadsheet would take for a formula has an apostrophe before it. Numbers are written so
    that they are read back to the last bit, also `nan`, `inf` and `-inf`.

    A training that resumes goes on in the table that is there: rows after the place where it resumes are removed. A new
    training begins the table anew. A file that is no such table, or that another run is writing, is left alone, and the
    sink is switched off.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> final = run(start(Scripted(loss=0.5, valid_loss=[0.8, 0.4]), epochs=2), sinks=[csv("run.csv")])
    >>> print(Path("run.csv").read_text().strip())
    phase,epoch,step,iteration,train_loss,valid_loss,lr
    epoch_end,1,3,3,0.5,0.8,0.1
    epoch_end,2,6,6,0.5,0.4,0.1

    Args:
        path: of the table.
        facts: of batches, such as "loss" or "grad_norm"; each of these batches has a row.
        every: of which batches: those whose number is a multiple of this.
        hyper: the names of hyper-parameters, which are written with each epoch; a parameter group has a column `lr/0`.

    Raises:
        TypeError, ValueError: `path` is no path, or an argument makes no sense.
    """
    check_path(path, "path", "csv('run.csv')")
    check_possible("path", path, "run.csv")
    return CsvTable(Path(path), Selection.checked(facts, every, hyper))


class CsvTable(Tracker):
    """The sink that `csv` makes. It has no place for settings and for how a training ended."""

    draws = False

    def __init__(self, path: Path, selection: Selection) -> None:
        super().__init__(selection)
        self._path = path
        self._file: TextIO | None = None
        self._lock: Lock | None = None

    def begin_run(self, state: State, config: Mapping[str, Setting], resumed: bool) -> None:
        self._table = Path(os.path.realpath(self._path))  # the program may go to another folder
        self._table.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = take(self._table.with_name(f".{self._table.name}.lock"))
        except HeldError as error:
            raise ValueError(f"{error} is writing the table {self._path}: give another path") from None
        columns = self._columns_there()
        self._columns = columns if resumed and columns else LEADING
        self._rewrite(lambda row: resumed and is_before(_point_of(row), state))

    def write(self, point: Point) -> None:
        values = {column_of(name): value for name, value in point.values.items()}
        if not values.keys() <= {*self._columns}:
            self._columns = tuple(dict.fromkeys((*self._columns, *values)))
            self._rewrite(lambda _: True)
        cells = (point.phase.value, point.epoch, point.step, point.iteration)
        self._rows.writerow({**values, **dict(zip(LEADING, cells, strict=True))})

    def end_run(self, ending: Ending) -> None:
        self._close_file()

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _columns_there(self) -> tuple[str, ...]:
        """The columns of the table that is there; none if there is none.

        Raises:
            ValueError: what is there is no table of this sink.
        """
        if not self._table.exists():
            return ()
        if self._table.is_file():
            with self._table.open(newline="", encoding="utf-8", errors="replace") as file:
                columns = tuple(next(csv_format.reader(file), ()))
            if not columns or columns[: len(LEADING)] == LEADING:
                return columns
        raise ValueError(f"{self._path} is no table that csv wrote, and is not written over: give another path")

    def _rewrite(self, keeps: Callable[[dict[str, str]], bool]) -> None:
        """Put the table with its present columns in place of the one that is there, with the rows that are kept."""
        self._close_file()
        new = self._table.with_name(f".{self._table.name}.new")
        try:
            with new.open("w", newline="", encoding="utf-8") as file:
                rows = csv_format.DictWriter(file, self._columns, lineterminator="\n")
                rows.writeheader()
                rows.writerows(row for row in _rows_of(self._table) if keeps(row))
            new.replace(self._table)
        finally:
            new.unlink(missing_ok=True)
        # Each row goes to the operating system when it ends.
        self._file = self._table.open("a", newline="", encoding="utf-8", buffering=1)
        self._rows = csv_format.DictWriter(self._file, self._columns, lineterminator="\n")

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def column_of(name: str) -> str:
    r"""The name as the header has it: in one line, and for a spreadsheet no formula, which an apostrophe says.

    >>> column_of("valid_loss"), column_of("=cmd()"), column_of("two\nlines")
    ('valid_loss', "'=cmd()", 'two\\nlines')
    """
    text = escaped(name)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table, without one that a crash cut short."""
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv_format.DictReader(line for line in file if line.endswith("\n"))


def _point_of(row: Mapping[str, str]) -> Point:
    epoch, step, iteration = (int(row[name]) for name in LEADING[1:])
    return Point(Phase(row["phase"]), epoch, step, iteration, {})
