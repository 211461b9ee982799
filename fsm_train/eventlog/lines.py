"""The format of a log: its header and its lines, defined once for writing and reading. README.md describes it.

Rule of this file: a line is a function of the state and the answers, so that a replay can make it again and
compare. Facts and the course come from the world; the writer adds them, and a replay reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar

import attrs
import orjson

from ..core.callback import Callback
from ..core.phase import FINAL, Junction, Phase, Place
from ..core.state import COUNTERS, Hyper, Plan, State
from ..core.table import ROWS
from ..core.transition import UNCHANGED, Transition
from ..core.turns import Players
from ..core.values import FrozenMap, SavedMemory
from ..encoding import INT64, Json, decode, encode, flag_names, flags, number, numbers

T = TypeVar("T")

SCHEMA = 2
HEADER = "header"
HISTORY = "history"
"""The event of a line after a header, with more of the history than is put into one line."""
HELD_BACK = "held back"
MEASURED = frozenset({Phase.EPOCH_END.value, Phase.VALID_END.value})
"""The events whose metrics are measured; other lines repeat them."""

ALWAYS = (Phase.SETUP, Phase.EPOCH_BEGIN, Phase.EPOCH_END, Phase.VALID_END, Phase.TEARDOWN, *FINAL)
"""The phases that always have a line; others have one where a callback is consulted."""

KEYS = frozenset(
    {*COUNTERS, "seq", "flags", "metrics", "hyper", "answers", "facts", "course", "reason", "resume_at", "error"}
    | {"batches_over", "exhausted", "player", "turns", "digest", "event"}
)
"""Every key of a line. Any other key was bound to the logger: run_id, rank, a time."""

HISTORY_KEYS = frozenset({"seq", "history", "digest", "event"})

HEADER_KEYS = frozenset(
    {"seq", "schema", "versions", "callbacks", "phases", "facts", "sensors", "start", "continues", "gap", "torn"}
    | {"digest", "event"}
)

OWN_KEYS: Mapping[str, Set[str]] = {HEADER: HEADER_KEYS, HISTORY: HISTORY_KEYS}
"""By event, every key of a line that is not one of a phase, which has `KEYS`."""

EVENT: Mapping[Phase, str] = {phase: phase.value for phase in Phase}
"""The event of a line, by phase. A lookup here is faster than `phase.value`, which runs Python code."""

PLACES: Mapping[str, Place] = {place.value: place for place in (*Phase, *Junction)}


DIGEST_BYTES = 6


def digest(before: str, body: bytes) -> str:
    """The digest of a line: 12 hexadecimal digits of BLAKE2b.

    Args:
        before: the digest of the line before; "" for the first line.
        body: the line as JSON, without its digest.
    """
    return hashlib.blake2b(before.encode() + body, digest_size=DIGEST_BYTES).hexdigest()


def with_digest(body: bytes, digits: str, event: str) -> bytes:
    """The line of a file: the line as JSON, whose last key is its event, with its digest before that."""
    end = len(body) - len(event) - len(b',"event":""}')
    return b'%b,"digest":"%b"%b\n' % (body[:end], digits.encode(), body[end:])


def canonical(body: Mapping[str, Json]) -> bytes:
    """The line as JSON with sorted keys: what the digest is made of where another logger writes the line."""
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def line_of(state: State, answers: Json) -> dict[str, Json]:
    """The line for a state and the answers to it, as `answers_of` gives them, without facts and course."""
    values = state.__dict__
    line: dict[str, Json] = {name: values[name] for name in COUNTERS}
    line["flags"] = flag_names(state.flags)
    line["hyper"] = hyper_of(state.hyper)
    line["metrics"] = numbers(state.metrics)
    if answers:
        line["answers"] = answers
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
    if state.players:
        line |= turns_of(state.players)
    return line


def turns_of(players: Players) -> dict[str, Json]:
    """Whose turn it is, and what is counted for each player; without the names, which the header has."""
    counted = {"steps": list(players.steps), "waiting": list(players.waiting), "fetched": players.fetched}
    turns = {"turn": players.turn, "coming": list(players.coming), **counted}
    return {**({"player": players.player} if players.player else {}), "turns": turns}


def decode_turns(body: Mapping[str, Json], players: Players) -> Players:
    """The players of a line; `players` has their names.

    Raises:
        ValueError: the line has others.
    """
    turns: Any = body.get("turns", {})
    if not turns and not players and "player" not in body:
        return players
    player = body.get("player", "")
    fits = turns and len(turns["steps"]) == len(turns["waiting"]) == len(players.names)
    if not fits or not {player, *turns["coming"]} - {""} <= {*players}:
        there_are = ", ".join(players) or "no players"
        raise ValueError(f"its turns are not those of this training, which has {there_are}")
    several = {name: tuple(turns[name]) for name in ("coming", "steps", "waiting")}
    return attrs.evolve(players, player=player, turn=turns["turn"], fetched=turns["fetched"], **several)


def hyper_of(hyper: Mapping[str, Hyper]) -> Mapping[str, Json]:
    """The hyper-parameters as JSON; the mapping itself unless a value is a tuple, or has no form in JSON."""
    value: Any
    for value in hyper.values():
        kind = type(value)
        if not (value - value == 0.0 if kind is float else kind is int and -INT64 <= value < INT64):
            return {name: encode(value) for name, value in hyper.items()}
    return hyper


def answers_of(answers: Mapping[str, Transition]) -> dict[str, Json]:
    """The answers to one state as JSON, by callback."""
    return {name: answer_of(answer) for name, answer in answers.items()}


def answer_of(answer: Transition) -> dict[str, Json]:
    """An answer as JSON, without the fields that change nothing."""
    encoded: dict[str, Json] = {}
    if answer.flags:
        encoded["flags"] = flag_names(answer.flags)
    if answer.hyper:
        encoded["hyper"] = hyper_of(answer.hyper)
    if answer.memory is not UNCHANGED:
        encoded["memory"] = encode(answer.memory)
    if answer.commands:
        encoded["commands"] = [encode(command) for command in answer.commands]
    if answer.reason:
        encoded["reason"] = encode(answer.reason)
    return encoded


class AnswerCache:
    """Encoded answers, by identity: the same mapping comes again where a decision is kept, or else the same record.

    It saves 5 % of a replay: 1.3 of 26 microseconds a line, with the log of tests/benchmarks/replay.py.
    """

    SIZE = 64

    def __init__(self) -> None:
        # What was encoded is held, so that no other object can get its id.
        self._encoded: dict[int, tuple[object, dict[str, Json]]] = {}

    def answers_of(self, answers: Mapping[str, Transition]) -> dict[str, Json]:
        """As the function of this name. The caller must not change the result."""
        if not answers:
            return {}
        if type(answers) is not FrozenMap:  # made for this one state
            return {name: self._cached(answer, answer_of) for name, answer in answers.items()}
        return self._cached(answers, answers_of)

    def _cached(self, given: T, encode: Callable[[T], dict[str, Json]]) -> dict[str, Json]:
        if (entry := self._encoded.get(id(given))) is None:
            if len(self._encoded) == self.SIZE:
                self._encoded.clear()
            entry = self._encoded[id(given)] = given, encode(given)
        return entry[1]


def _plan_of(plan: Plan) -> dict[str, Json]:
    seconds = {} if plan.seconds is None else {"seconds": plan.seconds}
    return {"epochs": plan.epochs, "max_steps": plan.max_steps, "seed": encode(plan.seed), **seconds}


def start_of(state: State, held: int = 0) -> dict[str, Json]:
    """The control state at the start of a call of `run`; of its history what comes after `held` epochs."""
    return {
        **line_of(state, {}),
        "plan": _plan_of(state.plan),
        "has_valid": state.has_valid,
        "fetched": state.fetched,
        **({} if state.batches_per_epoch is None else {"batches_per_epoch": state.batches_per_epoch}),
        **({"players": state.players.all_every} if state.players else {}),
        **({"held": held} if held else {}),
        "history": [numbers(metrics) for metrics in state.history[held:]],
        "memory": {
            name: memory.json if isinstance(memory, SavedMemory) else encode(memory)
            for name, memory in state.memory.items()
        },
    }


def callback_of(callback: Callback[Any]) -> dict[str, Json]:
    """The declarations of a callback. Its monitors are there if it has some: a log of an earlier version has none."""
    monitors = {"monitors": sorted(callback.monitors)} if callback.monitors else {}
    return {
        "name": callback.name,
        "factory": callback.factory,
        "params": {name: encode(value) for name, value in callback.params.items()},
        "at": [phase.value for phase in callback.at],
        "needs": sorted(callback.needs),
        "every": callback.every,
        "order": callback.order,
        **monitors,
    }


def header_of(
    state: State,
    callbacks: Sequence[Callback[Any]],
    *,
    phases: Iterable[Phase],
    facts: Iterable[str],
    sensors: Iterable[str],
    versions: Mapping[str, str],
    held: int = 0,
) -> dict[str, Json]:
    """The header: the first line of a call of `run`. The lines before it have `held` epochs of the history."""
    return {
        "schema": SCHEMA,
        "versions": versions,
        "callbacks": [callback_of(callback) for callback in callbacks],
        "phases": [phase.value for phase in phases],
        "facts": sorted(facts),
        "sensors": sorted(sensors),
        "start": start_of(state, held),
    }


# -------------------------------------------------------------------------------------- reading


def decode_plan(start: Mapping[str, Json]) -> Plan:
    """The plan of a start."""
    plan = start["plan"]
    return Plan(plan["epochs"], plan["max_steps"], decode(plan["seed"]), plan.get("seconds"))


def decode_hyper(value: Mapping[str, Json]) -> FrozenMap[str, Any]:
    """Hyper-parameters that `hyper_of` encoded."""
    if _are_plain(value):
        return FrozenMap(value)
    return FrozenMap({name: tuple(map(number, v)) if isinstance(v, list) else number(v) for name, v in value.items()})


def decode_numbers(value: Mapping[str, Json]) -> FrozenMap[str, float]:
    """Facts or metrics."""
    return FrozenMap(value if _are_plain(value) else {name: number(v) for name, v in value.items()})


def _are_plain(values: Mapping[str, Json]) -> bool:
    """Whether all values are numbers that JSON has a form for."""
    for value in values.values():  # no generator: this is done for each line
        kind = type(value)
        if kind is not float and kind is not int:
            return False
    return True


def decode_counters(body: Mapping[str, Json]) -> dict[str, Json]:
    """The counters of a line. Samples can be a fraction, since `Supervised(samples=…)` says what a batch counts."""
    return {name: body[name] for name in COUNTERS}


def decode_state(body: Mapping[str, Json], phase: Phase, last: State) -> State:
    """The state of a line; plan, history and memories, which a line does not have, are those of `last`."""
    resume_at = body.get("resume_at")
    return State(
        phase=phase,
        plan=last.plan,
        flags=flags(body["flags"]),
        metrics=decode_numbers(body["metrics"]),
        history=last.history,
        hyper=decode_hyper(body["hyper"]),
        memory=last.memory,
        reason=decode(body.get("reason", "")),
        has_valid=last.has_valid,
        batches_over=body.get("batches_over", False),
        resume_at=None if resume_at is None else PLACES[resume_at],
        error=decode(body.get("error", "")),
        fetched=last.fetched,
        exhausted=body.get("exhausted", False),
        players=decode_turns(body, last.players),
        **decode_counters(body),
    )


def logged_phases(header: Mapping[str, Json]) -> Sequence[Phase]:
    """The phases that have a line in a call of `run` with this header."""
    names = (*header["phases"], *(name for spec in header["callbacks"] for name in spec["at"]))
    return tuple(dict.fromkeys((*ALWAYS, *map(Phase, names))))


_FAILED = {Phase.TEARDOWN.value, Phase.FAILED.value}  # any place can fail, and TEARDOWN, after that, before its line


def _next_events() -> Mapping[Place, Set[str]]:
    always = frozenset(ALWAYS)
    events: dict[Place, Set[str]] = {}
    for place in ROWS:
        targets = [edge.target for edge in ROWS[place]]
        reached: set[Place] = set()
        while targets:
            target = targets.pop()
            if target in reached:
                continue
            reached.add(target)
            if target not in always:
                targets.extend(edge.target for edge in ROWS[target])
        events[place] = {target.value for target in reached if isinstance(target, Phase)} | _FAILED
    return events


NEXT_EVENTS = _next_events()
"""By place, the events that the next line can have according to the table, and those of a failure."""
