"""The short way to encode a line writes what `line_of` says, to the byte."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import inf, nan
from typing import Any

import attrs
import orjson
import pytest

from fsm_train import Flag, Phase, Plan, State
from fsm_train.core.state import COUNTERS
from fsm_train.core.turns import Players
from fsm_train.encoding import numbers
from fsm_train.eventlog.encoder import LineEncoder, line_of_file
from fsm_train.eventlog.lines import EVENT, digest, line_of, with_digest
from tests.how_long import of_all

FEW = 400
SEQUENCES = of_all(20_000, few=FEW)

NUMBERS = (
    0,
    1,
    True,
    False,
    -0.0,
    0.0,
    1.0,
    1e16,
    1e-7,
    1e22,
    5e-324,
    nan,
    inf,
    -inf,
    2**53 + 1,
    2**62,
    2**63,
    -(2**70),
)
NAMES = ("loss", "train_loss", "é", "\U0001f600", '"', "\\", "\x00", "\u2028", "", "a" * 70)
TEXTS = ("", "it stops", "pâte", "\ud800", '"\n\x1b')
COUNTS = (0, 1, 2, 10**6, 2**53 + 1)


def _named(draw: random.Random, values: tuple[Any, ...]) -> dict[str, Any]:
    return {name: draw.choice(values) for name in draw.sample(NAMES, draw.randint(0, 3))}


def _odd(draw: random.Random) -> State:
    """A state with values as a training seldom has them."""
    values: dict[str, Any] = {name: draw.choice(COUNTS) for name in COUNTERS}
    values["samples"] = draw.choice((*COUNTS, 0.5, 1e16, 32.0))
    seldom = {
        "batches_over": draw.random() < 0.2,
        "exhausted": draw.random() < 0.2,
        "reason": draw.choice(TEXTS) if draw.random() < 0.2 else "",
        "error": draw.choice(TEXTS) if draw.random() < 0.2 else "",
        "resume_at": draw.choice((None, Phase.BATCH_END)) if draw.random() < 0.2 else None,
        "players": Players.of({"D": 1, "G": 2}) if draw.random() < 0.1 else Players.of({}),
    }
    return State(
        draw.choice([*Phase]),
        Plan(1),
        flags=draw.choice([Flag.NONE, Flag.SKIP_STEP, Flag.SKIP_STEP | Flag.SKIP_ZERO]),
        hyper=_named(draw, (0.1, 1e-7, -0.0, 0.0, 1, 1 << 64, (0.1, 1e16))),
        metrics=_named(draw, NUMBERS),
        facts=_named(draw, NUMBERS),
        **values,
        **seldom,
    )


def _next(draw: random.Random, state: State) -> State:
    """Another state, often one that differs in little, with an equal mapping or the same."""
    if draw.random() < 0.3:
        return _odd(draw)
    changes: dict[str, Any] = {"phase": draw.choice([*Phase]), "epoch": draw.choice(COUNTS)}
    if draw.random() < 0.5:
        as_others = {0: -0.0, 1: 1.0}  # which are equal, and not the same
        changes["metrics"] = {name: as_others.get(value, value) for name, value in state.metrics.items()}
        changes["hyper"] = {name: as_others.get(value, value) for name, value in state.hyper.items()}
    return attrs.evolve(state, **changes)


def _parts(draw: random.Random, state: State) -> tuple[State, bytes, Mapping[str, Any], list[list[Any]]]:
    answers = orjson.dumps({"c": {"memory": draw.choice((1, [1.0, "é"]))}}) if draw.random() < 0.5 else b""
    course = [[draw.choice((32, 0.5, None, "held back")), 1]] if draw.random() < 0.5 else []
    return state, answers, numbers(state.facts), course


def _in_general(seq: int, state: State, answers: bytes, facts: Any, course: Any) -> bytes:
    line = line_of(state, orjson.loads(answers or b"{}"))
    over = {"course": course} if course else {}
    return orjson.dumps({"seq": seq, **line, "facts": facts, **over, "event": EVENT[state.phase]})


def _first_difference(encoder_of: type[LineEncoder], sequences: int) -> int | None:
    """The first random sequence of lines that is encoded otherwise than in general; None if there is none."""
    for number in range(sequences):
        draw = random.Random(f"sequence {number}")
        encoder, state = encoder_of(), _odd(draw)
        for seq in range(5):
            parts = _parts(draw, state)
            if encoder.encode(seq, *parts) != _in_general(seq, *parts):
                return number
            state = _next(draw, state)
    return None


@pytest.mark.long
def test_a_line_is_encoded_as_in_general() -> None:
    """Whatever is in it, and whatever line was before it."""
    assert _first_difference(LineEncoder, SEQUENCES) is None


class _ComparesMetrics(LineEncoder):
    """Does not encode again what is equal: 1 is True, and 0.0 is -0.0."""

    def _keep_metrics(self, metrics: Mapping[str, float]) -> None:
        if metrics != self._metrics:
            super()._keep_metrics(metrics)


class _ComparesRates(LineEncoder):
    """The same with hyper-parameters."""

    def _keep_hyper(self, hyper: Mapping[str, Any]) -> None:
        if hyper != self._hyper:
            super()._keep_hyper(hyper)


@pytest.mark.parametrize("mutant", [_ComparesMetrics, _ComparesRates])
def test_an_encoder_that_is_wrong_is_found(mutant: type[LineEncoder]) -> None:
    """The random lines get to where it matters."""
    assert _first_difference(mutant, FEW) is not None


def test_a_metric_that_is_no_number_is_refused_each_time() -> None:
    """Not only in the first line that has it."""
    encoder = LineEncoder()
    state = State(Phase.BATCH_END, Plan(1), metrics={"loss": "text"})  # type: ignore[dict-item]

    for _ in range(2):
        with pytest.raises(TypeError, match="loss is 'text', which is no real number"):
            encoder.encode(0, state, b"", {}, [])


def test_a_line_of_a_file_has_its_digest_before_its_event() -> None:
    """As where each line is written by itself."""
    body = b'{"seq":0,"event":"setup"}'

    for before in ("", "0123456789ab"):
        digits = digest(before, body)
        assert line_of_file(before.encode(), body, Phase.SETUP) == (digits.encode(), with_digest(body, digits, "setup"))
