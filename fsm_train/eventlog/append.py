"""How an existing log is continued: after which line, and which of its lines still count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from ..core.phase import Phase
from ..core.runs import is_new_training
from ..core.state import COUNTERS, State
from .checker import LineChecker
from .entries import entries, tail_of
from .errors import LogError
from .history import LoggedHistories, shared_epochs
from .lines import HEADER


@attrs.frozen
class Continuation:
    """How a file is continued.

    Attributes:
        seq: the `seq` of the next line.
        digest: the digest of the last line.
        continues: the `seq` of the line after which the training continues; None if it is a new training.
        gap: whether the log has no line of the state from which the training continues. `continues` is then the
            nearest line before it.
        held: the number of epochs of the state's history that the lines up to `continues` have.
        size: the number of bytes in whole lines.
        torn: the number of bytes after them, in a line that was cut short.
        missing_newline: whether the last whole line has no newline.
    """

    seq: int = 0
    digest: str = ""
    continues: int | None = None
    gap: bool = False
    held: int = 0
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
        OSError: the file cannot be read.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return Continuation()
    size, torn, missing_newline = tail_of(path)
    if size == 0:
        raise LogError("it is no log, and will not be written over: give another path", path=str(path))
    found = _search(path, state)
    return attrs.evolve(found, size=size, torn=torn, missing_newline=missing_newline)


def _search(path: Path, state: State) -> Continuation:
    """After which line the file is continued, and after which the training."""
    is_new = is_new_training(state)
    exact = nearest = None
    events = (
        {Phase.DONE.value, Phase.TRAIN_END.value}
        if state.resume_at is None
        else {"suspended", "suspend", state.resume_at.value}
    )
    failed = set() if state.resume_at is None else {Phase.TEARDOWN.value}  # which can be saved, and resumes there
    counters = [getattr(state, name) for name in COUNTERS]
    histories, checker = LoggedHistories(), LineChecker(path)
    for entry in entries(path, checker):
        if is_new:
            continue
        histories.see(entry)
        if entry.event == HEADER:
            continue
        if entry.body["iteration"] <= state.iteration:
            nearest = entry.seq
        found = entry.event in (failed if entry.body.get("error") else events)
        if found and [entry.body[name] for name in COUNTERS] == counters:
            exact = entry.seq
    last = checker.last
    assert last is not None
    if is_new:
        return Continuation(last.seq + 1, last.digest)
    continues = nearest if exact is None else exact
    held = 0 if continues is None else shared_epochs(histories.at(continues), state.history)
    return Continuation(last.seq + 1, last.digest, continues, exact is None, held)
