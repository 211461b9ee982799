"""What all trackers have in common: when a point is written, and how a training ended.

Rule of this file: it knows no tracker. Each has a file of its own, which imports its library when a tracker is made.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from ..core.arguments import as_list, kind_of
from ..core.callback import Callback
from ..core.checks import check_count
from ..core.phase import FINAL, Phase
from ..core.runs import is_new_training
from ..core.state import State
from ..core.transition import Transition
from ..encoding import Json, encode
from .base import Sink
from .current_epoch import CurrentEpoch
from .points import Point, phases_of, point_of_batch, point_of_epoch, point_of_validation, settings, shown_hyper
from .points import Setting as Setting  # imported from here too
from .progress_text import ending_of

_logger = logging.getLogger("fsm_train")

COUNTED = frozenset({"phase", "epoch", "step", "iteration"})
"""What trackers write of each point: nothing that is measured is called so."""


@attrs.frozen
class Ending:
    """How a training ended.

    Attributes:
        phase: DONE, SUSPENDED or FAILED; None if it was cut off before it came to one.
        text: the same in a sentence, with the reason.
        step: optimizer steps so far.
    """

    phase: Phase | None
    text: str
    step: int


@attrs.frozen
class Selection:
    """What a tracker is to be told, beside metrics. The arguments that all of them take.

    Attributes:
        facts: of batches, such as "loss".
        every: of which batches: those whose number is a multiple of this.
        hyper: the names of hyper-parameters, which are written with each epoch.
        config: settings of the user's own.
    """

    facts: frozenset[str]
    every: int
    hyper: tuple[str, ...]
    config: Mapping[str, object]

    @classmethod
    def checked(
        cls, facts: Iterable[str], every: int, hyper: Iterable[str], config: Mapping[str, object] | None = None
    ) -> Selection:
        """These, checked.

        Raises:
            TypeError: facts or hyper-parameters are no list of names, or the settings are no mapping with names.
            ValueError: `every` is no whole number from 1, or a name is that of a counter, which is written anyway.
        """
        facts, hyper = as_list(facts, "facts", "'loss'"), as_list(hyper, "hyper", "'lr'")
        for argument, names in (("facts", facts), ("hyper", hyper)):
            for name in names:
                if not isinstance(name, str):
                    raise TypeError(f"among {argument} is {kind_of(name)}: give names")
                if name in COUNTED:
                    raise ValueError(f"among {argument} is {name!r}, which each point has: give the fact another name")
        check_count("every", every, least=1)
        config = {} if config is None else config
        if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
            raise TypeError(f"config={config!r:.80}: give a mapping of settings by name, such as {{'width': 64}}")
        return cls(frozenset(facts), every, hyper, dict(config))


class Tracker(Sink):
    """A sink that writes points to a tracker. A kind of it derives from this and has the four methods at the end.

    Args:
        selection: what it is told beside metrics.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.at = (Phase.EPOCH_BEGIN, *phases_of(selection.facts), Phase.VALID_END, Phase.EPOCH_END, *FINAL)
        self.needs = selection.facts
        self.every = selection.every
        self._is_open = False

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        declared = [(c.name, {name: encode(value) for name, value in c.params.items()}) for c in callbacks]
        self.begin(state, declared, resumed=not is_new_training(state))

    def begin(self, state: State, callbacks: Iterable[tuple[str, Mapping[str, Json]]], *, resumed: bool) -> None:
        """A training begins or goes on with this state; the parameters of its callbacks are given as JSON."""
        self._ending: Ending | None = None
        self._step = state.step
        self._epoch = CurrentEpoch.at_start(state)
        if unknown := [n for n in self._selection.hyper if n != "lr" and not shown_hyper(state.hyper, [n])]:
            there_are = ", ".join(state.hyper) or "none"
            _logger.warning(f"hyper={unknown}: there is no such hyper-parameter to write: there are {there_are}")
        self.begin_run(state, settings(state.plan, state.hyper, callbacks, self._selection.config), resumed)
        self._is_open = True

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        self._step = state.step
        point = None
        match state.phase:
            case Phase.EPOCH_END:
                point = point_of_epoch(state, shown_hyper(self._epoch.hyper_used(state), self._selection.hyper))
            case Phase.VALID_END:
                point = point_of_validation(state)
            case Phase.DONE | Phase.SUSPENDED | Phase.FAILED:
                self._ending = Ending(state.phase, ending_of(state, self._epoch.index), state.step)
            case _:  # of a batch; or EPOCH_BEGIN, where no fact is asked for
                point = point_of_batch(state, self._selection.facts)
        self._epoch = self._epoch.after(state)
        if point is not None:
            self.write(point)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self.end_run(self._ending or Ending(None, "cut off before its end", self._step))

    # ------------------------------------------------------------------------- of each kind

    @abstractmethod
    def begin_run(self, state: State, config: Mapping[str, Setting], resumed: bool) -> None:
        """Make a run; of a training that is resumed, find the run that it had."""

    @abstractmethod
    def write(self, point: Point) -> None:
        """Write the numbers of a point."""

    @abstractmethod
    def end_run(self, ending: Ending) -> None:
        """Say how it ended, and close everything."""
