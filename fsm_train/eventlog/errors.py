"""What can be wrong with a log, in a sentence that names the file and the line."""

from __future__ import annotations

from ..core.errors import FsmTrainError


class LogError(FsmTrainError):
    """A log cannot be read, or cannot be used for what was asked.

    >>> from pathlib import Path
    >>> from fsm_train import replay
    >>> size = Path("run.jsonl").write_text("no log")
    >>> try:
    ...     replay("run.jsonl")
    ... except LogError as error:
    ...     print(error)
    run.jsonl, line 1: it is no JSON ...

    Attributes:
        path: the file.
        line: the number of the line in it, from 1; None if it is about the whole.
    """

    def __init__(self, message: str, *, path: str = "", line: int | None = None) -> None:
        where = ", ".join(filter(None, (path, "" if line is None else f"line {line}")))
        super().__init__(f"{where}: {message}" if where else message)
        self.path = path
        self.line = line


class OutOfStepError(LogError):
    """Something else comes next in the log than what is asked for."""

    def __init__(self, asked: str, found: str, *, path: str = "", line: int | None = None) -> None:
        super().__init__(f"{asked} would come next, but in the log it is {found}", path=path, line=line)
        self.asked = asked
        self.found = found


class EndOfLogError(OutOfStepError):
    """The log ends here, and what would have come next is not known."""
