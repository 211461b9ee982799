"""How an existing log is continued: after which line, and which of its lines still count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from ..core.phase import Phase
from ..core.state import COUNTERS, State
from .entries import Entry, entries, tail_of
from .errors import LogError
from .lines import HEADER, is_new_training


@attrs.frozen
class Continuation:
    """How a file is continued.

    Attributes:
        seq: the `seq` of the next line.
        digest: the digest of the last line.
        continues: the `seq` of the line after which the training continues; None if it is a new training.
        gap: whether the log has no line of the state from which the training continues. `continues` is then the
            nearest line before it.
        size: the number of bytes in whole lines.
        torn: the number of bytes after them, in a line that was cut short.
        missing_newline: whether the last whole line has no newline.
    """

    seq: int = 0
    digest: str = ""
    continues: int | None = None
    gap: bool = False
    size: int = 0
    torn: int = 0
    missing_newline: bool = False

    def header_fields(self) -> dict[str, Any]:
        """The keys of the header that describe the continuation."""
        fields: dict[str, Any] = {}
        if self.continues is not None:
            fields["continues"] = self.continues
        if self.gap:
            fields["gap"] = True
        if self.torn:
            fields["torn"] = self.torn
        return fields


def find_continuation(path: Path, state: State) -> Continuation:
    """How a run from `state` continues the log at this path.

    Raises:
        LogError: the file is no log, or the log is damaged.
    """
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return Continuation()
        size, torn, missing_newline = tail_of(path)
        if size == 0:
            raise LogError("it is no log, and will not be written over: give another path", path=str(path))
        last, continues, gap = _search(path, state)
    except OSError:
        return Continuation()  # opening the log raises the same error
    return Continuation(last.seq + 1, last.digest, continues, gap, size, torn, missing_newline)


def _search(path: Path, state: State) -> tuple[Entry, int | None, bool]:
    """The last line, the `seq` of the line of this state, and whether that is only the nearest line before it."""
    is_new = is_new_training(state)
    exact = nearest = None
    events = (
        {Phase.DONE.value, Phase.TRAIN_END.value}
        if state.resume_at is None
        else {"suspended", "suspend", state.resume_at.value}
    )
    failed = set() if state.resume_at is None else {Phase.TEARDOWN.value}  # which can be saved, and resumes there
    counters = [getattr(state, name) for name in COUNTERS]
    for last in entries(path):
        if is_new or last.event == HEADER:
            continue
        if last.body["iteration"] <= state.iteration:
            nearest = last.seq
        found = last.event in (failed if last.body.get("error") else events)
        if found and [last.body[name] for name in COUNTERS] == counters:
            exact = last.seq
    if is_new:
        return last, None, False
    return last, nearest if exact is None else exact, exact is None
