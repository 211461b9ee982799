"""Who watches a training, and what is measured for it: what is known of a run when it begins.

Rule of this file: records, made of what callbacks and sinks declare. `summary_text.py` puts them into words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, get_args

import attrs

from ..callbacks.directions import Direction
from ..core.callback import Callback
from ..core.facts import UNSAVED, measurable
from ..core.phase import CONSULTED, FINAL, Phase
from .base import Sink


@attrs.frozen
class Measurement:
    """A fact that is measured for someone.

    Attributes:
        fact: its name.
        who: the callback or the sink that needs it.
        sensor: whether a function of the user measures it.
        every: for a callback, at each so-many-th visit of a phase.
        interval: for a sink, the least number of seconds between two of them.
    """

    fact: str
    who: str
    sensor: bool = False
    every: int = 1
    interval: float = 0.0


@attrs.frozen
class Overview:
    """One call of `run`, as it begins.

    Attributes:
        watchers: by the name of a callback, or of the class of a sink, the phases at which it looks, in their order.
        measured: the facts that are measured for them.
        log: the path of the log; "" if there is none.
        folders: those that checkpoints are written to.
        monitors: by the name of a metric that a callback monitors, its mode: "min", "max", or "" if it does not say.
    """

    watchers: Mapping[str, Sequence[Phase]] = attrs.field(factory=dict)
    measured: Sequence[Measurement] = ()
    log: str = ""
    folders: Sequence[str] = ()
    monitors: Mapping[str, str] = attrs.field(factory=dict)


def overview_of(callbacks: Sequence[Callback[Any]], sinks: Sequence[Sink], sensors: Set[str]) -> Overview:
    """Who looks where in a run, and what is measured for whom.

    Args:
        callbacks: those of the run.
        sinks: those of the run, its log among them.
        sensors: the facts that the workload adds.
    """
    everywhere: tuple[Phase, ...] = (*CONSULTED, *FINAL)
    looking: dict[str, set[Phase]] = {}
    for who, at in (*((c.name, c.at) for c in callbacks), *((type(sink).__name__, sink.at) for sink in sinks)):
        looking.setdefault(who, set()).update(at)  # several sinks of one class are one watcher
    logs = [str(path) for sink in sinks if (path := getattr(sink, "log_path", None))]
    return Overview(
        {who: tuple(phase for phase in everywhere if phase in at) for who, at in looking.items()},
        tuple(_measured(callbacks, sinks, sensors)),
        log=logs[-1] if logs else "",  # that of the run comes after the other sinks
        folders=tuple(sorted({folder for callback in callbacks for folder in callback.writes_to})),
        monitors=_monitors(callbacks),
    )


def _monitors(callbacks: Sequence[Callback[Any]]) -> dict[str, str]:
    """The mode of each metric that is monitored; of several that monitor it, that of one that says it.

    A `mode` that is no direction is a setting of another kind, of a callback of one's own.
    """
    modes: dict[str, str] = {}
    for callback in callbacks:
        mode = callback.params.get("mode")
        for name in sorted(callback.monitors):
            modes[name] = modes.get(name) or (str(mode) if mode in get_args(Direction) else "")
    return modes


def _measured(callbacks: Sequence[Callback[Any]], sinks: Sequence[Sink], sensors: Set[str]) -> Iterator[Measurement]:
    for who, needs, at, every, interval in (
        *((callback.name, callback.needs, callback.at, callback.every, 0.0) for callback in callbacks),
        *((type(sink).__name__, sink.needs, sink.at, 1, sink.interval) for sink in sinks),
    ):
        for fact in sorted(needs):
            if not fact.startswith(UNSAVED) and any(measurable({fact}, phase, sensors) for phase in at):
                yield Measurement(fact, who, fact in sensors, every, interval)
