"""What stands in a log: the header, and a line for each look. Their one definition, for writing and reading.

Rules of this file: a line is made of the state and the answers alone, so that a replay makes it anew
and compares; what the world said (facts, the course) is kept apart, since no replay could decide it.

A line has `seq`, counters, flags, metrics and hyper-parameters, and where there is something to say
`answers`, `facts`, `reason`, `resume_at`, `error`. `course` is what happened since the line before, run-length
encoded: [[32, 44], [29, 1], [null, 1]] are 44 batches of 32 samples, one of 29, and the end of the data;
"held back" is a step that was not applied, "SIGTERM" the signal that asked to leave just then. `digest`
goes over the line and the digest of the line before it, so equal digests mean equal histories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from operator import attrgetter
from typing import Any

import orjson

from ..core.callback import Callback
from ..core.facts import KNOWN_AT
from ..core.phase import FINAL, Junction, Phase, Place
from ..core.state import COUNTERS, Hyper, Plan, State
from ..core.table import ROWS
from ..core.transition import UNCHANGED, Transition
from ..core.values import FrozenMap, SavedMemory
from ..encoding import CannotDecodeError, Json, decode, encode, flag_names, flags, number, numbers

SCHEMA = 1
HEADER = "header"
HELD_BACK = "held back"

ALWAYS = (Phase.SETUP, Phase.EPOCH_BEGIN, Phase.EPOCH_END, Phase.VALID_END, Phase.TEARDOWN, *FINAL)
"""The phases that have a line whether or not a callback is consulted."""

KEYS = frozenset(
    {*COUNTERS, "seq", "flags", "metrics", "hyper", "answers", "facts", "course", "reason", "resume_at", "error"}
    | {"batches_over", "exhausted", "digest", "event"}
)
"""Every key of a line. Others are bindings of whoever owns the logger: run_id, rank, a time."""

HEADER_KEYS = frozenset(
    {"seq", "schema", "versions", "callbacks", "phases", "facts", "sensors", "start", "continues", "gap", "torn"}
    | {"digest", "event"}
)

EVENT: Mapping[Phase, str] = {phase: phase.value for phase in Phase}
"""What a line is called; looked up, since the value of an enum's member is found by Python code."""

PLACES: Mapping[str, Place] = {place.value: place for place in (*Phase, *Junction)}


def digest(before: str, body: bytes) -> str:
    """The digest of a line whose other keys are `body`, after a line with the digest `before`."""
    return hashlib.blake2b(before.encode() + body, digest_size=6).hexdigest()


def canonical(body: Mapping[str, Json]) -> bytes:
    """A line that somebody else's logger writes, in the form that its digest is of: with sorted keys."""
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def line_of(state: State, answers: Mapping[str, Transition], said: Said | None = None) -> dict[str, Json]:
    """What a line says, apart from what the world said; `said` spares making the same answer out anew."""
    line: dict[str, Json] = {
        **dict(zip(COUNTERS, _counters(state), strict=True)),
        "flags": flag_names(state.flags),
        "hyper": hyper_of(state.hyper),
        "metrics": numbers(state.metrics),
    }
    if answers:
        make = answer_of if said is None else said.answer_of
        line["answers"] = {name: make(answer) for name, answer in answers.items()}
    if state.batches_over:
        line["batches_over"] = True
    if state.exhausted:
        line["exhausted"] = True
    if state.reason:
        line["reason"] = encode(state.reason)
    if state.resume_at is not None:
        line["resume_at"] = state.resume_at.value
    if state.error:
        line["error"] = encode(state.error)
    return line


_counters = attrgetter(*COUNTERS)


def hyper_of(hyper: Mapping[str, Hyper]) -> Mapping[str, Json]:
    """The hyper-parameters; nearly always the mapping itself."""
    for value in hyper.values():
        if type(value) is tuple:
            return {name: list(value) if type(value) is tuple else value for name, value in hyper.items()}
    return hyper


def answer_of(answer: Transition) -> dict[str, Json]:
    """An answer, without what it leaves as it is."""
    said: dict[str, Json] = {}
    if answer.flags:
        said["flags"] = flag_names(answer.flags)
    if answer.hyper:
        said["hyper"] = hyper_of(answer.hyper)
    if answer.memory is not UNCHANGED:
        said["memory"] = encode(answer.memory)
    if answer.commands:
        said["commands"] = [encode(command) for command in answer.commands]
    if answer.reason:
        said["reason"] = encode(answer.reason)
    return said


class Said:
    """The answers that were made out last: callbacks often give the very same one again."""

    MOST = 64

    def __init__(self) -> None:
        self._known: dict[int, tuple[Transition, dict[str, Json]]] = {}  # by id, which the record kept here holds

    def answer_of(self, answer: Transition) -> dict[str, Json]:
        """As the function; what comes back is not to be written to."""
        known = self._known.get(id(answer))
        if known is not None:
            return known[1]
        if len(self._known) == self.MOST:
            self._known.clear()
        said = answer_of(answer)
        self._known[id(answer)] = answer, said
        return said


def start_of(state: State) -> dict[str, Json]:
    """The whole control state that a call of `run` begins with."""
    return {
        **line_of(state, {}),
        "plan": {"epochs": state.plan.epochs, "max_steps": state.plan.max_steps, "seed": encode(state.plan.seed)},
        "has_valid": state.has_valid,
        "fetched": state.fetched,
        "history": [numbers(metrics) for metrics in state.history],
        "memory": {
            name: memory.json if isinstance(memory, SavedMemory) else encode(memory)
            for name, memory in state.memory.items()
        },
    }


def callback_of(callback: Callback[Any]) -> dict[str, Json]:
    """What a callback declares."""
    return {
        "name": callback.name,
        "factory": callback.factory,
        "params": {name: encode(value) for name, value in callback.params.items()},
        "at": [phase.value for phase in callback.at],
        "needs": sorted(callback.needs),
        "every": callback.every,
        "order": callback.order,
    }


def header_of(
    state: State,
    callbacks: Sequence[Callback[Any]],
    *,
    phases: Iterable[Phase],
    facts: Iterable[str],
    sensors: Iterable[str],
    versions: Mapping[str, str],
) -> dict[str, Json]:
    """The first line of a call of `run`."""
    return {
        "schema": SCHEMA,
        "versions": versions,
        "callbacks": [callback_of(callback) for callback in callbacks],
        "phases": [phase.value for phase in phases],
        "facts": sorted(facts),
        "sensors": sorted(sensors),
        "start": start_of(state),
    }


# -------------------------------------------------------------------------------------- reading


def plan_in(start: Mapping[str, Json]) -> Plan:
    plan = start["plan"]
    return Plan(plan["epochs"], plan["max_steps"], decode(plan["seed"]))


def hyper_in(value: Mapping[str, Json]) -> FrozenMap[str, Any]:
    return FrozenMap({name: tuple(map(number, v)) if isinstance(v, list) else number(v) for name, v in value.items()})


def numbers_in(value: Mapping[str, Json]) -> FrozenMap[str, float]:
    for v in value.values():
        if type(v) is not float and type(v) is not int:
            return FrozenMap({name: number(v) for name, v in value.items()})
    return FrozenMap(value)


def state_in(body: Mapping[str, Json], phase: Phase, last: State) -> State:
    """The state that a line tells of, where `last` says what a line does not: plan, history, memories.

    Raises:
        CannotDecodeError: something in the line is not what it should be.
    """
    counters = {name: body[name] for name in COUNTERS}
    for name, value in counters.items():
        if type(value) is not int:
            raise CannotDecodeError(f"{name} is {value!r}, and not a whole number")
    resume_at = body.get("resume_at")
    if resume_at is not None and resume_at not in PLACES:
        raise CannotDecodeError(f"resume_at is {resume_at!r:.60}, and no place of the machine")
    return State(
        phase=phase,
        plan=last.plan,
        flags=flags(body["flags"]),
        metrics=numbers_in(body["metrics"]),
        history=last.history,
        hyper=hyper_in(body["hyper"]),
        memory=last.memory,
        reason=decode(body.get("reason", "")),
        has_valid=last.has_valid,
        batches_over=body.get("batches_over", False),
        resume_at=None if resume_at is None else PLACES[resume_at],
        error=decode(body.get("error", "")),
        fetched=last.fetched,
        exhausted=body.get("exhausted", False),
        **counters,
    )


_SPEC: Mapping[str, type] = {
    "name": str,
    "factory": str,
    "params": dict,
    "at": list,
    "needs": list,
    "every": int,
    "order": int,
}


def wrong_in_header(body: Mapping[str, Json]) -> str:
    """The key of a header whose value is not of the form that it should be; "" if all are."""
    checks: dict[str, Callable[[Json], bool]] = {
        "start": _is_start,
        "callbacks": lambda specs: type(specs) is list and all(map(_is_spec, specs)),
        "phases": _are_phases,
        "sensors": _are_names,
        "facts": lambda names: _are_names(names) and set(names) <= {*KNOWN_AT, *body["sensors"]},
        "versions": lambda versions: type(versions) is dict,
    }
    return next((key for key, fits in checks.items() if not fits(body.get(key))), "")


def is_course(course: Json) -> bool:
    """Whether it is pairs of what happened, and how often."""
    return type(course) is list and all(
        type(run) is list and len(run) == 2 and type(run[0]) in _HAPPENS and type(run[1]) is int and run[1] >= 1
        for run in course
    )


_HAPPENS = (int, str, type(None))


def _is_start(start: Json) -> bool:
    return (
        type(start) is dict
        and all(type(start.get(key)) is dict for key in ("hyper", "metrics", "memory", "plan"))
        and type(start.get("resume_at", "")) is str
    )


def _is_spec(spec: Json) -> bool:
    if type(spec) is not dict or any(type(spec.get(key)) is not kind for key, kind in _SPEC.items()):
        return False
    return bool(spec["at"]) and _are_phases(spec["at"]) and _are_names(spec["needs"]) and spec["every"] >= 1


def _are_phases(names: Json) -> bool:
    return _are_names(names) and all(isinstance(PLACES.get(name), Phase) for name in names)


def _are_names(names: Json) -> bool:
    return type(names) is list and all(type(name) is str for name in names)


def _onward() -> Mapping[Place, Set[str]]:
    """From each place, the events that the next line can have."""
    always = frozenset(ALWAYS)
    found: dict[Place, Set[str]] = {}
    for place in ROWS:
        ahead = [edge.target for edge in ROWS[place]]
        seen: set[Place] = set()
        while ahead:
            here = ahead.pop()
            if here in seen:
                continue
            seen.add(here)
            if here not in always:
                ahead.extend(edge.target for edge in ROWS[here])
        found[place] = {here.value for here in seen if isinstance(here, Phase)} | {Phase.TEARDOWN.value}
    return found


ONWARD = _onward()
"""From each place, the events that the next line can have, by the table. Any place may also fail."""
