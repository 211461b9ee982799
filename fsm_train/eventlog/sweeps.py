"""What if, for many settings at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike

import attrs

from ..wording import short_number
from .counterfactual import Callback, WhatIf, what_if


@attrs.frozen
class Sweep:
    """What would have come of a training with each of several settings. Printed, it is a table.

    Attributes:
        rows: each setting, and what would have come of it.
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
    """Ask a log what would have come of each combination of settings of a callback.

    >>> from fsm_train import sweep
    >>> from fsm_train.callbacks import early_stopping
    >>> print(sweep("run.jsonl", early_stopping, patience=range(1, 11)))  # doctest: +SKIP

    Args:
        log: the path of a log.
        factory: makes the callback; what is not in `ranges` has its default (see functools.partial).
        **ranges: by setting, the values to try.

    Raises:
        LogError: the log cannot be read.
        TypeError, ValueError: the factory refuses a setting.
    """
    settings = [dict(zip(ranges, values, strict=True)) for values in itertools.product(*ranges.values())]
    return Sweep(tuple((setting, what_if(log, [factory(**setting)])) for setting in settings))
