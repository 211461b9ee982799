"""The observers of each phase: callbacks, sinks, and the loop around `iterate`. Worked out once per run.

Rule of this file: it decides who observes, never what happens.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from .core.arguments import check_path, is_path
from .core.callback import Callback, is_due, of_state_alone
from .core.description import check_commands, check_monitors, notes, watchers_before_loss, whole_step_callbacks
from .core.facts import check_needs, measurable
from .core.phase import BATCH_PHASES, CONSULTED, EPOCH_PHASES, FINAL, Flag, Phase, Place
from .core.reads import NO_DECISIONS, KeptDecision, compared_by
from .core.rhythm import Rhythm
from .core.state import Draft, State
from .core.workload import Workload
from .sinks.base import Guarded, Recorder, Sink

if TYPE_CHECKING:
    from .eventlog.writer import EventLog

_logger = logging.getLogger("fsm_train")

Observers = tuple[Sequence[Callback[Any]], Sequence[Guarded], Set[str]]


class Watched:
    """The observers of one place.

    Attributes:
        callbacks, sinks: those that declare this phase.
        followers: sinks that also observe wherever a callback is consulted.
        yields: whether `iterate` yields the state here though no callback is consulted.
        callbacks_only, callbacks_and_sinks: the two usual sets of observers, with the facts that they need.
        shared: whether facts are those of several ranks: a sink, which not all have, gets only what callbacks need.
        selective: whether each time it must be worked out who observes (`every`, intervals of sinks).
        always: the observers of each visit, unless it is selective.
        only_asks: whether each visit consults all the callbacks, no sink observes, and nothing is to be measured.
        asked: the callbacks, each with its function of the state if it has no memory.
        compared: gives the values by which decisions are kept here; None if they are not.
        kept: the decisions, by the flags on arriving and those values.
    """

    def __init__(
        self,
        place: Phase,
        callbacks: Sequence[Callback[Any]],
        sinks: Sequence[Guarded],
        followers: Sequence[Guarded],
        yields: bool,
        sensors: Set[str],
        shared: bool = False,
    ) -> None:
        self.place = place
        self.shared = shared
        self.callbacks = callbacks
        self.sinks = sinks
        self.followers = followers
        self.yields = yields
        self.sensors = sensors
        self.callbacks_only: Observers = (callbacks, (), self.needs(callbacks, ()))
        self.callbacks_and_sinks: Observers = (
            callbacks,
            (*sinks, *followers),
            self.needs(callbacks, (*sinks, *followers)),
        )
        self.each_time = all(callback.every == 1 for callback in callbacks)
        self.selective = bool(sinks) or not self.each_time
        self.always = self.callbacks_and_sinks if callbacks and followers else self.callbacks_only
        measures = bool(self.callbacks_only[2]) or place in FINAL
        self.only_asks = bool(callbacks) and not (self.selective or followers or measures)
        self.asked = [(callback, of_state_alone(callback)) for callback in callbacks]
        self.compared = compared_by(callbacks) if callbacks and self.each_time and not measures else None
        self.kept: dict[Flag, dict[object, KeptDecision]] = {}

    @property
    def now_and_then(self) -> bool:
        """Whether nobody observes here unless a callback is due."""
        periodic = self.place in BATCH_PHASES or self.place in EPOCH_PHASES
        return periodic and not (self.sinks or self.yields) and all(callback.every > 1 for callback in self.callbacks)

    def due(self, draft: Draft) -> Observers:
        """The observers of this visit, and the facts that they need."""
        callbacks = self.callbacks
        if not self.each_time:
            callbacks = [c for c in callbacks if c.every == 1 or is_due(c, self.place, draft)]
        sinks: Sequence[Guarded] = ()
        if self.sinks:
            now = time.monotonic() if self.place in BATCH_PHASES else math.inf
            sinks = [sink for sink in self.sinks if sink.due(now, draft.iteration)]
        if self.followers and callbacks:
            sinks = [*sinks, *self.followers]
        if len(callbacks) == len(self.callbacks):
            if not sinks:
                return self.callbacks_only
            if len(sinks) == len(self.callbacks_and_sinks[1]):
                return self.callbacks_and_sinks
        return callbacks, sinks, self.needs(callbacks, sinks)

    def decided_before(self, draft: Draft, flags: Flag) -> KeptDecision | None:
        """What the callbacks decided here in the same situation; None if they have not, or may decide otherwise."""
        if self.compared is None or draft.players:
            return None
        kept = self.kept.get(flags, NO_DECISIONS).get(self.compared(draft))
        return kept if kept is not None and kept.holds(draft.memory) else None

    def needs(self, callbacks: Sequence[Callback[Any]], sinks: Sequence[Guarded]) -> Set[str]:
        """The facts that these need and that can be measured here."""
        of_sinks = () if self.shared else (s.sink.needs for s in sinks)
        needs = frozenset[str]().union(*(c.needs for c in callbacks), *of_sinks)
        return measurable(needs, self.place, self.sensors) if needs else needs


class Watch:
    """The observers of each phase, for one call of `run`. What cannot work together is refused here."""

    def __init__(
        self, callbacks: tuple[Callback[Any], ...], sinks: Sequence[Sink], at: Sequence[Phase], work: Workload
    ) -> None:
        for callback in callbacks:
            check_needs(f"callback {callback.name!r}", callback.needs, callback.at, work.sensors)
            check_commands(callback, work.carries, work.refuses)
            check_monitors(callback, work.metric_names, work.has_valid)
        for sink in sinks:
            check_needs(f"the sink {type(sink).__name__}", sink.needs, sink.at, work.sensors)
        for note in notes(callbacks):
            _logger.warning("%s", note)
        others = (*((f"the sink {type(sink).__name__}", sink.at) for sink in sinks), ("at=…", at))
        if between := watchers_before_loss(callbacks, others):
            idle = ", ".join(whole_step_callbacks(callbacks))
            _logger.warning(
                "%s leaves forward and loss as they are, since these look between them: %s", idle, ", ".join(between)
            )
        self.callbacks = callbacks
        self.work = work
        self.folders = _folders(callbacks)
        self.positions = {callback.name: i for i, callback in enumerate(callbacks)}
        self.sinks = [Guarded(sink, work.undisturbed) for sink in sinks]
        self.at: dict[Place, Watched] = {}
        for phase in (*CONSULTED, *FINAL) if callbacks or self.sinks or at else ():
            here = [c for c in callbacks if phase in c.at and phase in CONSULTED]
            watching = [s for s in self.sinks if phase in s.sink.at]
            yields = phase in at and phase in CONSULTED  # the last state is yielded anyway
            if here or watching or yields:
                followers = [s for s in self.sinks if isinstance(s.sink, Recorder) and phase not in s.sink.at]
                shared = getattr(work, "shares_facts", False)
                self.at[phase] = Watched(phase, here, watching, followers, yields, work.sensors, shared)

    def rhythm(self) -> Rhythm | None:
        """When the places are watched at which not each visit counts; None if there are none."""
        sparse = {watched.place: watched for watched in self.at.values() if watched.now_and_then}
        everies = {place: [callback.every for callback in there.callbacks] for place, there in sparse.items()}
        return Rhythm(self.at.keys() - sparse.keys(), everies) if everies else None

    @contextmanager
    def wrapped(self, work: Workload, state: State) -> Iterator[Workload]:
        """The workload, wrapped by each recorder among the sinks; all sinks are closed with this context."""
        begun: list[Recorder] = []
        try:
            for recorder in (sink.sink for sink in self.sinks if isinstance(sink.sink, Recorder)):
                begun.append(recorder)
                work = recorder.wrap_workload(work, state)
        except BaseException:
            with ExitStack() as all_of_them:
                for recorder in begun:
                    all_of_them.callback(recorder.close)
            raise
        with ExitStack() as all_of_them:  # whatever comes while one is closed
            for sink in reversed(self.sinks):
                all_of_them.callback(sink.tell, "close")
            yield work

    def notes(self, before: tuple[str, ...]) -> tuple[str, ...]:
        """The notes of the state that the run began with, and why sinks were switched off."""
        return tuple(dict.fromkeys((*before, *(sink.trouble for sink in self.sinks if sink.trouble))))

    def open_sinks(self, state: State) -> None:
        """Tell the sinks that a run begins. If Ctrl-C comes meanwhile, they are told nothing more but its end."""
        try:
            for sink in self.sinks:
                if hasattr(sink.sink, "preview"):
                    from .sinks.overview import overview_of  # which a run that nobody watches does without

                    overview = overview_of(self.callbacks, [each.sink for each in self.sinks], self.work.sensors)
                    sink.tell("preview", overview, self.work)
                sink.tell("open", state, self.callbacks)
        except BaseException:
            for sink in self.sinks:
                sink.interrupted = True
            raise


def _folders(callbacks: Sequence[Callback[Any]]) -> Set[str]:
    """The folders that the callbacks write to.

    Raises:
        ValueError: two of them write to one.
    """
    owners: dict[str, str] = {}
    for callback in callbacks:
        for folder in sorted(callback.writes_to):
            owner = owners.setdefault(os.path.realpath(folder), callback.name)
            if owner != callback.name:
                raise ValueError(
                    f"the callbacks {owner!r} and {callback.name!r} both write checkpoints to {folder}, where they "
                    "would replace and remove each other's: give each a folder of its own, or one checkpoint(folder, "
                    "monitor=…, keep=…, last=…), which keeps the best and the last"
                )
    return owners.keys()


def of_rank(rank: int, sinks: Sequence[Sink], log: EventLog | str | PathLike[str] | None) -> tuple[Sink, ...]:
    """The sinks of this rank, and that which writes the log: those of rank 0.

    Other ranks have no sinks, and no log either, unless its path has "{rank}" in it. What the logs say is the same.
    """
    path = getattr(log, "path", log)
    if isinstance(path, (str, PathLike)) and "{rank}" in fspath(path):
        if not is_path(log):
            raise ValueError(f"log={log!r}: a log of each rank has no settings: write log={fspath(path)!r}")
        return (*(sinks if rank == 0 else ()), *event_log(fspath(path).replace("{rank}", str(rank))))
    return (*sinks, *event_log(log)) if rank == 0 else ()


def event_log(log: EventLog | str | PathLike[str] | None) -> tuple[Sink, ...]:
    """The sink that writes the log; none without one."""
    if log is None:
        return ()
    from .eventlog.writer import EventLog  # which imports orjson: a run without a log does without

    if isinstance(log, EventLog):
        return (log,)
    check_path(log, "log", "log='run.jsonl', or log=EventLog('run.jsonl', …) with settings")
    return (EventLog(log),)
