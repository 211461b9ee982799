"""What `progress` keeps of a run for the tables around it.

Rule of this file: it decides when a table is due. What it says is in summary_text.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..core.phase import Phase
from ..core.state import State
from ..core.workload import Workload
from .overview import Overview
from .summary_text import BestWithin, beginning, best_within, end


class Summary:
    """The tables around one call of `run`.

    Args:
        overview: of the run.
        workload: what is trained. One that was trained before has been shown, and has no tables at its beginning.
    """

    def __init__(self, overview: Overview, workload: Workload) -> None:
        self._overview = overview
        self._model = None if getattr(workload, "summary_logged", False) else workload
        self._best_within: Mapping[str, BestWithin] = {}

    def see(self, state: State, width: int) -> Iterator[str]:
        """A phase is over: the tables of the beginning, if it is the first one.

        They are not shown sooner, since until then callbacks may freeze parts of the model, or change them.
        """
        if state.phase is Phase.VALID_END:
            self._best_within = best_within(self._best_within, state, self._overview.monitors)
        if self._model is not None:
            model, self._model = self._model, None
            yield from beginning(getattr(model, "model_parts", ()), self._overview, width)

    def end(self, state: State, seconds: float, width: int) -> Iterator[str]:
        """The lines below the last one of a run that took so long."""
        return end(state, self._overview, seconds, width, self._best_within)
