"""Values survive JSON to the last bit, and nothing else comes out of a file."""

from __future__ import annotations

import math
import random
import struct
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import attrs
import orjson
import pytest

from fsm_train import Flag, Phase
from fsm_train.encoding import CannotDecodeError, decode, encode, flags, number, numbers
from fsm_train.eventlog.from_header import SCHEDULES
from fsm_train.schedules import (
    absolute,
    constant,
    cosine,
    cyclic,
    exponential,
    multistep,
    one_cycle,
    piecewise,
    warmup,
)


def through_json(value: object, classes: dict[str, type] | None = None) -> Any:
    return decode(orjson.loads(orjson.dumps(encode(value))), classes)


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 5e-324, -5e-324, 1.7976931348623157e308, 0.1, 1 / 3]


@pytest.mark.unmeasured
def test_a_million_random_floats_survive_exactly() -> None:
    """Any 64 bits at all, NaNs with a payload among them, are the same 64 bits afterwards."""
    count = 1_000_000
    data = random.Random(0).randbytes(8 * count)
    written = orjson.dumps(list(map(encode, struct.unpack(f">{count}d", data))))

    read = list(map(number, orjson.loads(written)))

    assert struct.pack(f">{count}d", *read) == data


@pytest.mark.parametrize("value", SPECIAL, ids=repr)
def test_special_floats_survive_exactly(value: float) -> None:
    """Signed zeros, infinities, subnormals and NaNs of either sign, alone and in a mapping."""
    assert bits(through_json(value)) == bits(value)
    assert bits(number(orjson.loads(orjson.dumps(numbers({"loss": value})))["loss"])) == bits(value)


@attrs.frozen
class Kept:
    best: float | None
    names: tuple[str, ...] = ()
    inner: Kept | None = None


VALUES = [
    None,
    True,
    2**63 - 1,
    -(2**63),
    2**64 + 1,
    -(10**40),
    "plain",
    "pâte\n\x1b[2J\u202e",
    "\udc80 alone",
    (),
    (1, (2.5, ("x", None))),
    Kept(math.nan, ("a",), Kept(None)),
    [1, [2]],
    {0: 1, "five": (4, 5)},
    frozenset({1, 2}),
    Phase.BATCH_END,
    Flag.SKIP_STEP | Flag.SKIP_ZERO,
    Flag.NONE,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_survive(value: object) -> None:
    """Whatever a memory or a setting may be comes back as it was, of the same type."""
    again = through_json(value, {"Kept": Kept})

    assert repr(again) == repr(value)
    assert type(again) is type(value)


SCHEDULED = [
    warmup(4),
    warmup(4).then(cosine(40, floor=0.1)) * 0.5,
    absolute(0.1),
    absolute(constant(0.3)),
    exponential(rate=0.1),
    multistep([3, 5]),
    piecewise({0: 1.0, 7: 0.5}),
    one_cycle(100, shape="linear", three_phase=True),
    cyclic(5, down=3, low=0.1, mode="exp_range", gamma=0.9),
]


@pytest.mark.parametrize("schedule", SCHEDULED, ids=repr)
def test_schedules_survive(schedule: object) -> None:
    """A schedule is a record, and is made again from its fields."""
    assert through_json(schedule, dict(SCHEDULES)) == schedule


class _Float(float):
    """As numpy's float64 is."""


def test_numbers_of_derived_classes_are_numbers() -> None:
    """A float of a class of somebody else's is written as the float that it is."""
    assert encode(_Float(0.5)) == 0.5
    assert type(encode(_Float(0.5))) is float
    assert numbers({"loss": _Float(0.5)}) == {"loss": 0.5}


@pytest.mark.parametrize("value", [True, Fraction(1, 2), Decimal(1), "1", None, 1j, [1.0]], ids=repr)
def test_a_number_that_is_written_can_be_read(value: Any) -> None:
    """What is real becomes a plain number; anything else is refused, with its name."""
    if isinstance(value, Real):
        written = numbers({"loss": value})["loss"]
        assert (number(written), type(written) is bool) == (value, False)
    else:
        with pytest.raises(TypeError, match="loss is .*, which is no real number"):
            numbers({"loss": value})


def test_what_has_no_form_is_text_that_is_always_the_same() -> None:
    """A function is written by its repr, without its address, and cannot be made again."""
    written = encode(lambda: None)

    assert written["$repr"].startswith("<function test_what_has_no_form")
    assert " at 0x" not in written["$repr"]
    with pytest.raises(CannotDecodeError, match="was written as text"):
        decode(written)


REFUSED: list[tuple[Any, str]] = [
    ({"$float": "zero"}, "is no float"),
    ({"$float": 3}, "is no float"),
    ({"$int": "x"}, "is no int"),
    ({"$enum": "os.system"}, "is no enum"),
    ({"$enum": "Flag.NOTHING"}, "'NOTHING' is no flag"),
    ({"$": "Popen", "args": "ls"}, "a record of a class 'Popen', which is not known here"),
    ({"$": ["x"]}, "which is not known here"),
    ({"$": "Kept", "best": 1.0}, r"has the fields \['best'\], but now"),
    ({"$": "warmup", "length": "x", "start": 1.0}, "its record warmup is refused"),
    ({"a": 1}, "is not a value that a log has"),
    ({"$float": "nan", "$int": "1"}, "is not a value that a log has"),
    ({"$map": [1]}, "is no map"),
    ({"$list": [{"$repr": "x"}]}, "was written as text"),
    *(
        ({tag: content}, f"is no {tag[1:]}")
        for tag in ("$float", "$int", "$str", "$enum", "$repr")
        for content in (1, [])
    ),
    *(({tag: content}, f"is no {tag[1:]}") for tag in ("$list", "$set", "$map") for content in ("ab", {}, None)),
    ({"$str": "\\q"}, "is no str"),  # of which Python warns
    ({"$str": "\\N{BELL}"}, "is no str"),
    ({"$str": "\\U00110000"}, "is no str"),
    ({"$str": "é"}, "is no str"),
    ({"$set": [{"$map": []}]}, "is no set"),
    ({"$map": [[[1], 2, 3]]}, "is no map"),
    ({"$": "Refuses", "what": 1}, "its record Refuses is refused: 0"),
]


@attrs.frozen
class Refuses:
    what: int

    def __attrs_post_init__(self) -> None:
        raise ZeroDivisionError(0)


@pytest.mark.parametrize(("value", "sentence"), REFUSED, ids=str)
def test_what_was_never_written_is_refused(value: object, sentence: str) -> None:
    """No class is looked up, nothing is called, and the reason is said."""
    with pytest.raises(CannotDecodeError, match=sentence):
        decode(value, {"Kept": Kept, "Refuses": Refuses, **SCHEDULES})


def test_deeply_nested_values_are_refused() -> None:
    """Before Python's own recursion gives out."""
    value: Any = 1
    for _ in range(200):
        value = [value]

    with pytest.raises(CannotDecodeError, match="nested too deeply"):
        decode(value)


@pytest.mark.parametrize(
    "value", [None, "1", True, [1], {"$float": "nan", "x": 1}, {"$repr": "1"}, {"$int": "9" * 400}]
)
def test_what_is_no_number_is_refused(value: object) -> None:
    """Null above all, which other encoders write for NaN."""
    with pytest.raises(CannotDecodeError, match="is not a number"):
        number(value)


def test_what_are_no_flags_is_refused() -> None:
    """Neither another type nor another name."""
    assert flags("SKIP_STEP|SKIP_ZERO") == Flag.SKIP_STEP | Flag.SKIP_ZERO
    for value in (3, None, "SKIP_STEP|FLY"):
        with pytest.raises(CannotDecodeError, match="no flag"):
            flags(value)
