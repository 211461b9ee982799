"""The form of a line: of what type each value in it is.

Rule of this file: types are checked here and nowhere else, once for each line, when it is read. What has passed can be
decoded, compared and shown; memories and commands are any JSON, and only a decoder with classes makes more of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from ..core.facts import known_at
from ..core.phase import CONSULTED, Phase
from ..core.state import COUNTERS, NEVER
from ..core.table import RESUMES_AT, ROWS
from ..encoding import CannotDecodeError, Json, decode, flags, is_encoded, number
from .lines import PLACES

Check = Callable[[Json], bool]

MAX_DEPTH = 254
"""The deepest nesting of a line: orjson writes none that is deeper."""

MAX_EVENTS = 1 << 30
"""The most events in the course of a line: far more batches than there are between two lines of a training."""


def is_too_deep(raw: bytes, line: Json) -> bool:
    """Whether the JSON is nested more deeply than a line of a log; `raw` are its bytes."""
    if len(raw) <= 2 * MAX_DEPTH or raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    level: list[Json] = [line]
    for _ in range(MAX_DEPTH):
        level = [part for value in level for part in _parts(value) if type(part) in (list, dict)]
        if not level:
            return False
    return True


def _parts(value: Json) -> Any:
    return value.values() if type(value) is dict else value


def malformed_key(body: Mapping[str, Json], checks: Mapping[str, Check], required: Set[str]) -> str:
    """The first key whose value does not have its form, or that is missing; "" if there is none."""
    for key, value in body.items():
        if key in checks and not checks[key](value):
            return key
    return "" if required <= body.keys() else next(key for key in checks if key in required and key not in body)


# ------------------------------------------------------------------------------------- values


def is_count(value: Json) -> bool:
    return type(value) is int and value >= 0


def _is_int(value: Json) -> bool:
    return type(value) is int


def _is_amount(value: Json) -> bool:
    return (type(value) is int or type(value) is float) and value >= 0


def _is_bool(value: Json) -> bool:
    return type(value) is bool


def _is_str(value: Json) -> bool:
    return type(value) is str


def _is_text(value: Json) -> bool:
    if type(value) is str:
        return True
    try:
        return type(decode(value)) is str
    except CannotDecodeError:
        return False


def is_number(value: Json) -> bool:
    if type(value) is float or type(value) is int:
        return True
    try:
        number(value)
    except CannotDecodeError:
        return False
    return True


def are_numbers(values: Json) -> bool:
    """Whether it is a mapping from names to numbers."""
    if type(values) is not dict:
        return False
    for value in values.values():  # no generator: this is done for each line
        if type(value) is not float and type(value) is not int and not is_number(value):
            return False
    return True


def _are_hyper(values: Json) -> bool:
    return are_numbers(values) or (
        type(values) is dict
        and all(all(map(is_number, value)) if type(value) is list else is_number(value) for value in values.values())
    )


@functools.lru_cache(maxsize=512)
def _are_flag_names(value: str) -> bool:
    try:
        flags(value)
    except CannotDecodeError:
        return False
    return True


def _are_flags(value: Json) -> bool:
    return type(value) is str and _are_flag_names(value)


def _is_resumable(value: Json) -> bool:
    return type(value) is str and value in _RESUMABLE


_RESUMABLE = frozenset(
    RESUMES_AT.get(place, place).value
    for place, edges in ROWS.items()
    if place in RESUMES_AT or any(edge.target is Phase.SUSPEND for edge in edges)
)
"""The places where a suspended training resumes."""


def _are_answers(answers: Json) -> bool:
    if type(answers) is not dict:
        return False
    for answer in answers.values():  # its checks are written out: this is done for most lines
        if type(answer) is not dict:
            return False
        for key, value in answer.items():
            if key == "commands":
                if type(value) is not list:
                    return False
                for command in value:
                    if type(command) is not dict or type(command.get("$")) is not str:
                        return False
            elif key == "flags":
                if type(value) is not str or not _are_flag_names(value):
                    return False
            elif (key == "hyper" and not _are_hyper(value)) or (key == "reason" and not _is_text(value)):
                return False
    return True


def _is_course(course: Json) -> bool:
    """Whether the value is a list of pairs [event, count]."""
    if type(course) is not list:
        return False
    for run in course:
        if type(run) is not list or len(run) != 2:
            return False
        event, count = run
        if type(event) not in _COURSE_TYPES or type(count) is not int or count < 1:
            return False
        if event is not None and type(event) is not str and event < 0:
            return False
    return True


_COURSE_TYPES = frozenset({int, float, str, type(None)})


_TURNS: Mapping[str, Check] = {
    "turn": is_count,
    "coming": lambda names: type(names) is list and all(map(_is_str, names)),
    "steps": lambda steps: type(steps) is list and all(map(is_count, steps)),
    "waiting": lambda waiting: type(waiting) is list and all(map(is_count, waiting)),
    "fetched": _is_amount,
}


def _are_turns(turns: Json) -> bool:
    return type(turns) is dict and not malformed_key(turns, _TURNS, _TURNS.keys())


# --------------------------------------------------------------------------------- whole lines

_LINE: Mapping[str, Check] = {
    **dict.fromkeys(COUNTERS, _is_int),
    "samples": lambda value: type(value) is int or type(value) is float,
    "flags": _are_flags,
    "hyper": _are_hyper,
    "metrics": are_numbers,
    "answers": _are_answers,
    "reason": _is_text,
    "error": _is_text,
    "resume_at": _is_resumable,
    "batches_over": _is_bool,
    "exhausted": _is_bool,
    "player": _is_str,
    "turns": _are_turns,
}
"""By key of a line, whether a value is of its form."""

_LINE_REQUIRED = frozenset({*COUNTERS, "flags", "hyper", "metrics"})


def _plain_shapes() -> Mapping[tuple[str, ...], Sequence[tuple[type, ...]]]:
    shapes: dict[tuple[str, ...], Sequence[tuple[type, ...]]] = {}
    optional = ("answers", "batches_over", "exhausted", "course")
    for chosen in itertools.product((False, True), repeat=len(optional)):
        left_out = {key for key, there in zip(optional, chosen, strict=True) if not there}
        types: dict[str, type] = {"seq": int, **dict.fromkeys(COUNTERS, int)}
        types |= {"flags": str, "hyper": dict, "metrics": dict, "answers": dict, "batches_over": bool}
        types |= {"exhausted": bool, "facts": dict, "course": list, "digest": str, "event": str}
        kept = {key: kind for key, kind in types.items() if key not in left_out}
        shapes[*kept] = [(*(kept | {"samples": samples}).values(),) for samples in (int, float)]
    return shapes


_PLAIN = _plain_shapes()
"""The keys of almost every line, in the order of this library, with the types that their values can have."""


def is_plain(line: Mapping[str, Json]) -> bool:
    """Whether a line has the keys of almost every line, with values of their types."""
    return (*map(type, line.values()),) in _PLAIN.get((*line,), ())


def is_plain_inside(line: Mapping[str, Json]) -> bool:
    """Whether no value of a line that `is_plain` has a fault inside."""
    for value in (*line["hyper"].values(), *line["metrics"].values(), *line["facts"].values()):
        kind = type(value)
        if kind is not float and kind is not int:  # such as a NaN, or a rate by parameter group
            return not fault_in_line(line, line["facts"], line.get("course", []))
    return (
        _are_flag_names(line["flags"])
        and ("answers" not in line or _are_answers(line["answers"]))
        and ("course" not in line or _is_course(line["course"]))
    )


def is_plain_course(course: Json) -> bool:
    """Whether it is a course of one event that happened once, as of almost every line within a batch, or of none."""
    return course == [] or (_is_course(course) and len(course) == 1 and course[0][1] == 1)


def fault_in_line(body: Mapping[str, Json], facts: Json, course: Json) -> str:
    """What does not have the form of a log in a line; "" if nothing."""
    if key := malformed_key(body, _LINE, _LINE_REQUIRED):
        return _sentence(key, body.get(key))
    if not are_numbers(facts):
        return _sentence("facts", facts)
    return "" if course == [] or _is_course(course) else _sentence("course", course)


def _sentence(key: str, value: Json) -> str:
    return f"its {key} is {value!r:.60}, and not of the form that a log has"


def _is_plan(plan: Json) -> bool:
    if type(plan) is not dict or not {"epochs", "max_steps", "seed"} <= plan.keys():
        return False
    limits, seed, seconds = (plan["epochs"], plan["max_steps"]), plan["seed"], plan.get("seconds")
    if not all(limit is None or is_count(limit) for limit in limits) or (*limits, seconds) == (None, None, None):
        return False
    if seconds is not None and not (type(seconds) in (int, float) and seconds > 0):
        return False
    try:
        return seed is None or is_count(decode(seed))
    except CannotDecodeError:
        return False


def _is_history(epochs: Json) -> bool:
    """Whether the value is a list of the metrics of epochs."""
    return type(epochs) is list and all(map(are_numbers, epochs))


_START: Mapping[str, Check] = {
    **_LINE,
    **dict.fromkeys(COUNTERS, is_count),
    "samples": _is_amount,
    "validated_at": lambda value: _is_int(value) and value >= NEVER,
    "plan": _is_plan,
    "has_valid": _is_bool,
    "fetched": _is_amount,
    "batches_per_epoch": is_count,
    "players": lambda players: type(players) is dict and all(map(is_count, players.values())),
    "history": _is_history,
    "held": is_count,
    "further": is_count,
    "memory": lambda memory: type(memory) is dict,
}
_START_REQUIRED = _LINE_REQUIRED | {"plan", "has_valid", "fetched", "history", "memory"}


def _is_start(start: Json) -> bool:
    return type(start) is dict and not malformed_key(start, _START, _START_REQUIRED)


def _are_names(names: Json) -> bool:
    return type(names) is list and all(map(_is_str, names))


def _are_phases(names: Json) -> bool:
    return _are_names(names) and all(isinstance(PLACES.get(name), Phase) for name in names)


_SPEC: Mapping[str, Check] = {
    "name": lambda name: type(name) is str and name != "",
    "factory": _is_str,
    "params": lambda params: type(params) is dict and all(map(is_encoded, params.values())),
    "at": lambda at: _are_phases(at) and any(PLACES[name] in CONSULTED for name in at),
    "needs": _are_names,
    "every": lambda every: is_count(every) and every >= 1,
    "order": _is_int,
    "monitors": _are_names,
}
_SPEC_REQUIRED = _SPEC.keys() - {"monitors"}


def _are_specs(specs: Json) -> bool:
    if type(specs) is not list:
        return False
    if any(type(spec) is not dict or malformed_key(spec, _SPEC, _SPEC_REQUIRED) for spec in specs):
        return False
    return len({spec["name"] for spec in specs}) == len(specs)


def _are_versions(versions: Json) -> bool:
    return type(versions) is dict and all(map(_is_str, versions.values()))


_HEADER: Mapping[str, Check] = {
    "versions": _are_versions,
    "callbacks": _are_specs,
    "phases": _are_phases,
    "sensors": _are_names,
    "facts": _are_names,
    "start": _is_start,
    "continues": is_count,
    "gap": _is_bool,
    "torn": is_count,
}
"""By key of a header, whether a value is of its form."""

_HEADER_REQUIRED = _HEADER.keys() - {"continues", "gap", "torn"}


def fault_in_header(header: Mapping[str, Json], seq: int) -> str:
    """What does not have the form of a log in a header, which is line `seq`; "" if nothing."""
    key = malformed_key(header, _HEADER, _HEADER_REQUIRED)
    if key == "start" and type(start := header.get("start")) is dict:
        key = malformed_key(start, _START, _START_REQUIRED)
        return _sentence(f"start.{key}", start.get(key))
    if not key and any(known_at(name) is None and name not in header["sensors"] for name in header["facts"]):
        key = "facts"
    if not key and header.get("continues", -1) >= seq:
        key = "continues"
    return _sentence(key, header.get(key)) if key else ""


def fault_in_history(body: Mapping[str, Json], further: int) -> str:
    """What does not have the form of a log in a line with further epochs of a history; "" if nothing.

    Args:
        body: of the line.
        further: the epochs that the header says there are.
    """
    epochs = body.get("history")
    fits = _is_history(epochs) and 0 < len(epochs) <= further  # type: ignore[arg-type]
    return "" if fits else _sentence("history", epochs)
