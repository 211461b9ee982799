"""The control state of a training as JSON, and back. It is `state.json` in a checkpoint. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import orjson

from ..core.checks import is_number
from ..core.errors import CheckpointError
from ..core.history import NO_EPOCHS, History
from ..core.phase import Flag, Phase
from ..core.runs import resume_place
from ..core.state import COUNTERS, Plan, State
from ..core.table import RESUMES_AT
from ..core.turns import NO_PLAYERS, Players
from ..core.values import NO_FACTS, FrozenMap, Metrics, SavedMemory
from ..encoding import CannotDecodeError, decode, encode
from .manifest import whole_number

LARGEST_JSON = 256 * 2**20  # bytes; a state is some kilobytes, its history some megabytes at most
_COUNTERS = (*COUNTERS, "fetched")


@attrs.frozen
class SavedJson(SavedMemory):
    """A callback's memory as JSON.

    Attributes:
        callback: the name of the callback.
        json: the memory as `encode` gave it.
    """

    callback: str
    json: Any

    def decode_with(self, classes: Mapping[str, type]) -> object:
        try:
            return decode(self.json, classes)
        except CannotDecodeError as error:
            raise CheckpointError(
                f"the memory of the callback {self.callback!r} does not fit it: {error}. Records are made again of "
                "the classes in its initial memory, and in the type of its second parameter. With another name= the "
                "callback begins with its initial memory"
            ) from error


def control_of(state: State, in_files: int = 0) -> bytes:
    """The state as JSON, exactly, without facts and workload, which belong to one moment.

    So many epochs of the history are in files of their own, and left out.
    """
    resume_at = resume_place(state)
    return orjson.dumps(
        {
            **{name: getattr(state, name) for name in _COUNTERS},
            "reason": encode(state.reason),
            "plan": attrs.asdict(state.plan, filter=lambda field, value: field.name != "seconds" or value is not None),
            "flags": state.flags.value,
            "metrics": encode(dict(state.metrics)),
            "history": encode(tuple(dict(metrics) for metrics in state.history[in_files:])),
            **({"history_in_files": in_files} if in_files else {}),
            "hyper": encode(dict(state.hyper)),
            "step_hyper": encode(dict(state.step_hyper)),
            "memory": {name: _memory(value) for name, value in state.memory.items()},
            "resume_at": None if resume_at is None else encode(resume_at),
            "has_valid": state.has_valid,
            "batches_over": state.batches_over,
            **({"players": encode(state.players)} if state.players else {}),
            "elapsed": encode(state.elapsed),
            "notes": encode(state.notes),
            "settings": {name: dict(settings) for name, settings in state.settings.items()},
        },
        option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2,
    )


def _memory(value: object) -> Any:
    return value.json if isinstance(value, SavedJson) else encode(value)  # the former: its callback is not in this run


def _counter(name: str, value: Any) -> float:
    """The value, if it is a count; what batches count can be a fraction."""
    counts_samples = name in ("samples", "fetched") and type(value) is float and math.isfinite(value)
    return value if counts_samples else whole_number(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise CannotDecodeError(f"{value!r:.60} are no notes")
    return value


def _players(value: Any) -> Players:
    """The value, if it could be those of a training."""
    if not isinstance(value, Players):
        raise CannotDecodeError(f"{value!r:.60} are no players")
    begun = Players.of(dict(zip(value.names, value.every, strict=True)))
    counts = [*value.steps, *value.waiting, value.turn]
    if len(value.steps) != len(begun.names) or len(value.waiting) != len(begun.names):
        raise CannotDecodeError(f"{value!r:.60} counts others than its players")
    if not {value.player, *value.coming} - {""} <= {*begun} or [whole_number(count) for count in counts] != counts:
        raise CannotDecodeError(f"{value!r:.60} has turns of others than its players")
    _counter("fetched", value.fetched)
    return value


def _flags(value: Any) -> Flag:
    if type(value) is not int or not 0 <= value <= (~Flag.NONE).value:  # Flag(-1) would be all of them
        raise CannotDecodeError(f"{value!r:.60} are no flags")
    return Flag(value)


def _seconds(value: Any) -> float:
    if not is_number(value) or not 0 <= value < math.inf:
        raise CannotDecodeError(f"{value!r:.60} is no time")
    return value


def state_of(control: bytes, in_files: History[Mapping[str, float]] = NO_EPOCHS) -> State:
    """The state that `control_of` encoded, as one between two runs; its history begins with what is in files.

    Memories stay encoded until the run starts: only their callbacks know the classes of the records.

    Raises:
        CheckpointError: the bytes are no such state.
    """
    try:
        fields: Mapping[str, Any] = orjson.loads(control)
        resume_at = None if fields["resume_at"] is None else decode(fields["resume_at"])
        if resume_at not in (None, *RESUMES_AT.values()):
            raise CannotDecodeError(f"it resumes at {resume_at!r}")
        if (epochs := fields.get("history_in_files", 0)) != len(in_files):
            raise CannotDecodeError(f"its history goes on after {epochs} epochs, and there are {len(in_files)}")
        counters: dict[str, Any] = {name: _counter(name, fields[name]) for name in _COUNTERS}
        return State(
            Phase.DONE if resume_at is None else Phase.SUSPENDED,
            Plan(**fields["plan"]),
            **counters,
            reason=str(decode(fields["reason"])),
            flags=_flags(fields["flags"]),
            facts=NO_FACTS,
            metrics=FrozenMap(decode(fields["metrics"])),
            history=in_files + tuple(Metrics(metrics) for metrics in decode(fields["history"], depth=1000)),
            hyper=FrozenMap(decode(fields["hyper"])),
            step_hyper=FrozenMap(decode(fields.get("step_hyper", encode({})))),  # checkpoints had none at first
            memory=FrozenMap({name: SavedJson(name, value) for name, value in fields["memory"].items()}),
            has_valid=bool(fields["has_valid"]),
            batches_over=bool(fields["batches_over"]),
            resume_at=resume_at,
            players=_players(decode(fields["players"], {"Players": Players})) if "players" in fields else NO_PLAYERS,
            elapsed=_seconds(decode(fields["elapsed"])),
            notes=_texts(decode(fields["notes"])),
            settings=FrozenMap({name: FrozenMap(own) for name, own in fields.get("settings", {}).items()}),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the control state is damaged: {type(error).__name__}: {error}") from error
