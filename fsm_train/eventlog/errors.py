"""The errors of logs. Each message names the file and the line."""

from __future__ import annotations

from ..core.errors import FsmTrainError


class LogError(FsmTrainError):
    """A log cannot be read, or cannot be used for this purpose.

    >>> from pathlib import Path
    >>> from fsm_train import replay
    >>> size = Path("run.jsonl").write_text("no log")
    >>> try:
    ...     replay("run.jsonl")
    ... except LogError as error:
    ...     print(error)
    run.jsonl, line 1: it is no JSON ...

    Attributes:
        path: the path of the log; "" if it is unknown.
        line: the number of the line in the file, from 1; None if the error is about the whole file.
    """

    def __init__(self, message: str, *, path: str = "", line: int | None = None) -> None:
        where = ", ".join(filter(None, (path, "" if line is None else f"line {line}")))
        super().__init__(f"{where}: {message}" if where else message)
        self.path = path
        self.line = line


class OutOfStepError(LogError):
    """The log has something else next than what is requested.

    Attributes:
        requested: what was requested of the recorded training.
        recorded: what the log has there.
    """

    def __init__(self, requested: str, recorded: str, *, path: str = "", line: int | None = None) -> None:
        super().__init__(f"{requested} would come next, but in the log it is {recorded}", path=path, line=line)
        self.requested = requested
        self.recorded = recorded


class EndOfLogError(OutOfStepError):
    """The log ends before what is requested."""


class NotLazyError(LogError):
    """A line has to be read as a whole from the beginning: what was taken from it without that is not all there is."""
