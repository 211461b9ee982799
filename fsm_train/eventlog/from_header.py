"""Callbacks of the library, made from the declarations in a header.

Rule of this file: only factories of the library are called, and only with data.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from .. import callbacks as library
from .. import schedules
from ..callbacks.monitoring import monitored
from ..callbacks.time_limit import time_limit
from ..callbacks.windows import Recipe
from ..core.callback import Callback
from ..core.origin import call_factory
from ..core.phase import Flag, Phase
from ..core.state import State, replaced
from ..core.transition import Transition
from ..encoding import CannotDecodeError, Json, decode
from .entry import Entry
from .errors import LogError

FACTORIES: Mapping[str, Any] = {
    f"{factory.__module__}.{factory.__qualname__}": factory
    for factory in (*(getattr(library, name) for name in library.__all__), time_limit)
}
SCHEDULES: Mapping[str, type] = {
    name: kind for name in schedules.__all__ if attrs.has(kind := getattr(schedules, name)) and isinstance(kind, type)
}


def callbacks_from_header(header: Entry, path: str = "") -> tuple[Callback[Any], ...]:
    """The callbacks of a call of `run`, made from its header.

    Raises:
        LogError: a callback is not of the library, or its settings are not data; the error names it.
    """
    return tuple(_callback_from_line(spec, header.number, path) for spec in header.body["callbacks"])


def callback_from_spec(spec: Mapping[str, Json], **changes: object) -> Callback[Any]:
    """The callback that was logged with these declarations, with some of its settings changed.

    Raises:
        CannotDecodeError: the callback is not of the library, or its settings are not data.
        TypeError, ValueError: the factory refuses the settings.
    """
    factory = FACTORIES.get(spec["factory"])
    if factory is None:
        raise CannotDecodeError("it is not of the library")
    classes = {**SCHEDULES, Recipe.__name__: Recipe}
    params = {name: _of_library(decode(value, classes)) for name, value in spec["params"].items()}
    callback: Callback[Any] = call_factory(factory, {**params, **changes}, decode(spec["name"]))
    return as_recorded(callback, spec)


def _of_library(setting: object) -> object:
    """The setting, if it is no callback of a factory that is not of the library.

    Raises:
        CannotDecodeError: it is one; nothing of it was called.
    """
    if isinstance(setting, Recipe):
        if setting.factory not in FACTORIES:
            raise CannotDecodeError("the callback inside is not of the library")
        for inner in setting.params.values():
            _of_library(inner)
    return setting


def as_recorded(callback: Callback[Any], spec: Mapping[str, Json] | None) -> Callback[Any]:
    """The callback, consulted as the one of the same factory that was logged with these declarations, if there is one.

    Earlier versions looked at a `valid_…` at EPOCH_END, also if the training was already about to stop, and did not
    log what a callback monitors; they wrote a checkpoint, as the worst, for an epoch without a measurement; and they
    did not keep the newest checkpoints beside the best. A training that they logged is replayed as they trained it.
    """
    if spec is None or spec["factory"] != callback.factory:
        return callback
    is_checkpoint = FACTORIES.get(callback.factory) is library.checkpoint
    if is_checkpoint and "last" not in spec["params"]:
        callback = call_factory(library.checkpoint, {**callback.params, "last": 0}, callback.name)
    if not callback.monitors or "monitors" in spec:
        return callback
    moved = {Phase.EPOCH_END: Phase.EPOCH_END, Phase.VALID_END: Phase.EPOCH_END}
    phases = tuple(dict.fromkeys(moved.get(phase, phase) for phase in callback.at))

    def decide(state: State, memory: object) -> Transition | None:
        as_before = replaced(state, {"flags": state.flags & ~Flag.STOP_TRAINING, "validated_at": -1})
        if is_checkpoint and state.phase is Phase.EPOCH_END:
            as_before = _measured_as_nan(as_before, callback.monitors)
        return callback.decide(as_before, memory)

    return attrs.evolve(callback, at=phases, decide=decide, monitors=(), reads=None)


def _measured_as_nan(state: State, monitors: Iterable[str]) -> State:
    """The state with NaN for each metric that some epochs measure, but not this one."""
    unmeasured = {}
    for monitor in monitors:
        with contextlib.suppress(LookupError):  # the callback says it, at the epoch at which it said it then
            if monitored(state, monitor) is None:
                unmeasured[monitor] = math.nan
    return replaced(state, {"metrics": {**state.metrics, **unmeasured}})


def _callback_from_line(spec: Mapping[str, Json], line: int, path: str) -> Callback[Any]:
    try:
        return callback_from_spec(spec)
    except Exception as error:  # a factory refuses what it was never given in its own way
        raise LogError(
            f"the callback {spec['name']!r:.80} cannot be made from the log: {error}. Give the callbacks of this "
            "training",
            path=path,
            line=line,
        ) from error


def declaration_of(spec: Mapping[str, Json]) -> tuple[Json, ...]:
    """The declarations that decide when a callback is consulted, and in which order."""
    return (spec["name"], spec["at"], spec["needs"], spec["every"], spec["order"])
