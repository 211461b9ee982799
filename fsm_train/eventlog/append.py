"""Where a log that is there goes on: after which line, and what of it still counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from ..core.phase import Phase
from ..core.state import COUNTERS, State
from .entries import Entry, entries, tail_of
from .errors import LogError
from .lines import HEADER


@attrs.frozen
class Continuation:
    """How a file is continued.

    Attributes:
        seq: the number of the next line.
        digest: that of the last line.
        continues: the number of the line that the training goes on from; None if it begins anew.
        gap: whether the log does not lead to where the training goes on.
        size: so many bytes of the file are whole lines.
        torn: so many bytes after them are of a line that was cut short.
        unended: whether the last whole line has no line end.
    """

    seq: int = 0
    digest: str = ""
    continues: int | None = None
    gap: bool = False
    size: int = 0
    torn: int = 0
    unended: bool = False

    def said(self) -> dict[str, Any]:
        """What the header says of it."""
        found: dict[str, Any] = {}
        if self.continues is not None:
            found["continues"] = self.continues
        if self.gap:
            found["gap"] = True
        if self.torn:
            found["torn"] = self.torn
        return found


def continuation(path: Path, state: State) -> Continuation:
    """How the log at this path is continued by a run that begins with `state`.

    Raises:
        LogError: there is something else at this path, or the log is damaged.
    """
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return Continuation()
        size, torn, unended = tail_of(path)
        if size == 0:
            raise LogError("it is no log, and will not be written over: give another path", path=str(path))
        last, continues, gap = _search(path, state)
    except OSError:
        return Continuation()  # it will be said when the log is opened
    return Continuation(last.seq + 1, last.digest, continues, gap, size, torn, unended)


def _search(path: Path, state: State) -> tuple[Entry, int | None, bool]:
    """The last line, the one that tells of this state, and whether that is only the nearest before it."""
    begins_anew = state.iteration == 0 and state.epoch == 0 and state.resume_at is None
    exact = nearest = None
    events = (
        {Phase.DONE.value, Phase.TRAIN_END.value}
        if state.resume_at is None
        else {"suspended", "suspend", state.resume_at.value}
    )
    counters = [getattr(state, name) for name in COUNTERS]
    for last in entries(path):
        if begins_anew or last.event == HEADER:
            continue
        if last.body["iteration"] <= state.iteration:
            nearest = last.seq
        if last.event in events and [last.body[name] for name in COUNTERS] == counters:
            exact = last.seq
    if begins_anew:
        return last, None, False
    return last, nearest if exact is None else exact, exact is None
