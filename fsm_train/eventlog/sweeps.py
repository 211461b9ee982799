"""A what-if for each of many settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike

import attrs

from ..wording import short_number
from .counterfactual import Callback, WhatIf, what_if


@attrs.frozen
class Sweep:
    """The what-ifs of several settings. Printed, it is a table.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> answers = sweep("run.jsonl", early_stopping, patience=[1, 2, 3])
    >>> [(settings["patience"], answer.stopped_at) for settings, answer in answers]
    [(1, 2), (2, 3), (3, 3)]

    Attributes:
        rows: pairs of a setting (values by name) and its what-if.
    """

    rows: tuple[tuple[Mapping[str, object], WhatIf], ...]

    def __iter__(self) -> Iterator[tuple[Mapping[str, object], WhatIf]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        names = list(self.rows[0][0]) if self.rows else []
        cells = [[*names, "verdict", "stopped at", "best", "why"]]
        for setting, answer in self.rows:
            stopped = "-" if answer.stopped_at is None else f"epoch {answer.stopped_at}"
            best = "-" if answer.best is None else f"{short_number(answer.best.value, 6)} (epoch {answer.best.epoch})"
            cells.append([*map(str, setting.values()), answer.verdict, stopped, best, answer.why])
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def sweep(log: str | PathLike[str], factory: Callable[..., Callback], **ranges: Iterable[object]) -> Sweep:
    """What would have become of a recorded training with each combination of settings of a callback.

    >>> from fsm_train import run, start
    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 1.5, 2.0])
    >>> final = run(start(work, epochs=3), [early_stopping(patience=9)], log="run.jsonl")
    >>> answers = sweep("run.jsonl", early_stopping, patience=[1, 2, 3])
    >>> [answer.stopped_at for settings, answer in answers]
    [2, 3, 3]

    Args:
        log: the path of a log.
        factory: makes the callback. For other settings than those in `ranges`, use functools.partial.
        **ranges: the values of each setting.

    Raises:
        LogError: the log cannot be read.
        TypeError, ValueError: the factory refuses a setting.
    """
    settings = [dict(zip(ranges, values, strict=True)) for values in itertools.product(*ranges.values())]
    return Sweep(tuple((setting, what_if(log, [factory(**setting)])) for setting in settings))
