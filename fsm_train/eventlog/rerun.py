"""One recorded call of `run`, run again: what a replay and a what-if have in common.

Rule of this file: a rerun is a run. The interpreter is the same code, on the recorded world; what each state
means is decided by `compare`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from ..core.callback import Callback
from ..core.errors import CallbackError, ConflictError
from ..core.phase import FINAL, Phase
from ..core.state import State
from ..core.transition import Transition
from ..interpreter import run_without_signals
from ..sinks.base import Recorder
from .errors import LogError, OutOfStepError
from .recorded import Recorded


class _Finished(GeneratorExit):
    """Nothing more is compared."""


class Rerun(Recorder):
    """Runs a recorded call of `run` from its first state, and gives each state to `compare`.

    Attributes:
        recorded: the log, as a workload.
        at: the phases at which the states are compared.
        last: the last state that agrees with the log.
        finished: whether nothing more is compared.
    """

    draws = False

    def __init__(self, recorded: Recorded, start: State, at: Iterable[Phase]) -> None:
        self.recorded = recorded
        self.at = tuple(dict.fromkeys(at))
        self.last = attrs.evolve(start, workload=None)
        self.finished = False
        self._start = start
        self._unreadable: LogError | None = None

    def rerun(self, callbacks: Iterable[Callback[Any]]) -> Exception | None:
        """Run until `compare` has finished or the call ends.

        Returns:
            The error that ended the run: an OutOfStepError where the log has something else next, a CallbackError
            or a ConflictError. None if there was none.

        Raises:
            LogError: the log cannot be read, or the callbacks do not fit its training.
        """
        try:
            ended_by = self._rerun(callbacks)
        except LogError:
            self.recorded.open_lines()  # a damaged line that was read before is the error
            raise
        self.recorded.open_lines()
        return ended_by

    def _rerun(self, callbacks: Iterable[Callback[Any]]) -> Exception | None:
        ended_by: Exception | None = None
        try:
            last = run_without_signals(self._start, callbacks, [self])
            if not self.finished:
                self.last = attrs.evolve(last, workload=None)
        except _Finished:
            pass
        except (OutOfStepError, CallbackError, ConflictError) as error:
            ended_by = error
        except LogError as unreadable:
            getattr(unreadable, "__notes__", []).clear()  # they describe a training, and there is none
            raise
        except (TypeError, ValueError, LookupError) as error:
            what = f"its training cannot be run again with these callbacks: {error}"
            raise LogError(what, path=self.recorded.path, line=self.recorded.header.number) from error
        if self._unreadable is not None:
            raise self._unreadable
        return ended_by

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        if self.finished or self.recorded.out_of_step:
            return
        try:
            self.compare(state, answers)
        except LogError as error:  # the interpreter switches off a sink that raises, so `rerun` raises it
            self._unreadable, self.finished = error, True
        if self.finished and not (state.error or state.phase in FINAL):  # or else it ends by itself
            raise _Finished

    @abstractmethod
    def compare(self, state: State, answers: Mapping[str, Transition]) -> None:
        """Compare a state and the answers to it with the log; set `last` or `finished`.

        Raises:
            LogError: a line cannot be read.
        """
