"""Random changes of a log: of its bytes, of its lines, and of values in it, with digests that fit again."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import orjson

from fsm_train.eventlog.checker import LineChecker
from fsm_train.eventlog.lines import digest

Draw = random.Random
Lines = list[dict[str, Any]]


def _nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def odd_value(draw: Draw) -> Any:
    """A value as no log has it, or only elsewhere."""
    digits = "9" * draw.choice((20, 400, 4000, 5000))
    return draw.choice(
        (
            *(None, True, False, 0, 1, -1, 0.5, -1e308, 1e-320, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
            *(
                "",
                "x",
                "\x00",
                "\x1b[2J",
                "\u202e",
                "\U0001f600",
                "a" * 10_000,
                "header",
                "nan",
                "SKIP_STEP",
                "epoch_end",
            ),
            *(
                [],
                {},
                [[]],
                [{}],
                [[1, 2]],
                {"": None},
                {"a": 1},
                [None],
                ["x"],
                [[32, 2**62]],
                [[None, 1], [2**63, 1]],
            ),
            *({"$": 1}, {"$": "Best"}, {"$": "Best", "value": "x", "bad": []}, {"$float": "nan"}, {"$float": 3}),
            *({"$float": "7ff0000000000001"}, {"$float": "inf"}, {"$int": digits}, {"$int": "-" + digits}, {"$int": 1}),
            *(
                {"$str": "\\ud800"},
                {"$str": "\\q"},
                {"$str": "\\N{BELL}"},
                {"$str": 1},
                {"$repr": "x"},
                {"$enum": "Flag.X"},
            ),
            *(
                {"$list": "abc"},
                {"$list": [1]},
                {"$set": [[1], {}]},
                {"$map": [1]},
                {"$map": [[[], 1]]},
                {"$map": [[1, 2]]},
            ),
            *(_nested(draw.choice((50, 70, 200, 300)), kind) for kind in ("list", "map")),
        )
    )


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each place in the value: what it is in, and its key or its index."""
    found: list[tuple[Any, Any]] = []
    ahead = [value]
    while ahead:
        inside = ahead.pop()
        for key, part in inside.items() if isinstance(inside, dict) else enumerate(inside):
            found.append((inside, key))
            if isinstance(part, (dict, list)):
                ahead.append(part)
    return found


def _place(lines: Lines, draw: Draw) -> tuple[Any, Any]:
    return draw.choice(places(draw.choice(lines)))


def _replace(lines: Lines, draw: Draw) -> None:
    inside, key = _place(lines, draw)
    inside[key] = odd_value(draw)


def _copy(lines: Lines, draw: Draw) -> None:
    """A value from somewhere else in the log: of another line, or of another key."""
    (inside, key), (source, name) = _place(lines, draw), _place(lines, draw)
    inside[key] = copy.deepcopy(source[name])


def _remove(lines: Lines, draw: Draw) -> None:
    inside, key = _place(lines, draw)
    del inside[key]


def _add(lines: Lines, draw: Draw) -> None:
    insides = [inside for inside, _ in places(draw.choice(lines)) if isinstance(inside, dict)]
    draw.choice(insides)[draw.choice(("reason", "error", "resume_at", "facts", "\u202e", "continues", "x"))] = (
        odd_value(draw)
    )


def _scale(lines: Lines, draw: Draw) -> None:
    """Every counter of a name is larger, so that they fit together."""
    name, factor = (
        draw.choice(("iteration", "epoch", "step", "batch", "samples", "valid_batch")),
        draw.choice((3, 2**40)),
    )
    for line in lines:
        for at in (line, line.get("start", {})):
            if isinstance(at, dict) and isinstance(at.get(name), (int, float)):
                at[name] = int(at[name]) * factor


def _delete_line(lines: Lines, draw: Draw) -> None:
    del lines[draw.randrange(len(lines))]


def _repeat_line(lines: Lines, draw: Draw) -> None:
    lines.insert(draw.randrange(len(lines)), copy.deepcopy(draw.choice(lines)))


def _swap_lines(lines: Lines, draw: Draw) -> None:
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]


def _cut(lines: Lines, draw: Draw) -> None:
    del lines[draw.randint(1, len(lines)) :]


IN_LINES: tuple[Callable[[Lines, Draw], None], ...] = (
    *(_replace,) * 6,
    *(_copy, _remove, _add) * 2,
    *(_scale, _delete_line, _repeat_line, _swap_lines, _cut),
)


def _fitting(lines: Lines, *, count_again: bool) -> bytes:
    """The lines as a file, with digests that fit, and sequence numbers too if asked for."""
    before, written = "", []
    for seq, line in enumerate(lines):
        body = {key: value for key, value in line.items() if key not in ("digest", "event")}
        if count_again:
            body["seq"] = seq
        # orjson refuses what is deep
        text = json.dumps({**body, "event": line.get("event")}, separators=(",", ":")).encode()
        before = digest(before, text)
        cut = text.rindex(b'"event":')  # where the library writes the digest
        written.append(b'%b"digest":"%b",%b\n' % (text[:cut], before.encode(), text[cut:]))
    return b"".join(written)


def _flip(data: bytearray, draw: Draw) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _zero(data: bytearray, draw: Draw) -> None:
    at = draw.randrange(len(data))
    data[at : at + draw.choice((1, 100, 5000))] = b""


def _insert(data: bytearray, draw: Draw) -> None:
    at = draw.randrange(len(data))
    data[at:at] = draw.choice(
        (b"\n", b"\x00", b"\xff\xfe", b"[" * 2000, b"9" * 500, b'"\\ud800"', b"NaN", b"\r", b"{}\n")
    )


IN_BYTES: tuple[Callable[[bytearray, Draw], None], ...] = (_flip, _zero, _insert)


def mutated(whole: bytes, draw: Draw) -> bytes:
    """The log with one to three changes: of values and lines nine times in ten, else of bytes."""
    if draw.random() < 0.1:
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            draw.choice(IN_BYTES)(data, draw)
        return bytes(data)
    lines: Lines = [orjson.loads(line) for line in whole.splitlines()]
    for _ in range(draw.randint(1, 3)):
        draw.choice(IN_LINES)(lines, draw)
        lines = [line for line in lines if line] or [{"event": "header"}]
    return _fitting(lines, count_again=draw.random() < 0.9)


def first_difference(
    path: Path, logs: Sequence[Path], short_way: str, question: Callable[[Draw], Callable[[], object]], mutations: int
) -> int | None:
    """The first mutation of which the answer is another without this method of `LineChecker`; None if there is none.

    Args:
        path: where each mutated log is written.
        logs: those that are mutated.
        short_way: the name of the method, which gives None of what it leaves to the long way.
        question: gives what is asked of the log at `path`, and asked twice.
        mutations: how many are tried.
    """
    for number in range(mutations):
        draw = Draw(f"mutation {number}")
        path.write_bytes(mutated(draw.choice(logs).read_bytes(), draw))
        ask = question(draw)
        answer = ask()
        with mock.patch.object(LineChecker, short_way, return_value=None):
            if ask() != answer:
                return number
    return None
