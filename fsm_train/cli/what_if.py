"""`fsm-train what-if LOG CALLBACK.SETTING=VALUES ...`."""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ..eventlog.counterfactual import what_if
from ..eventlog.from_header import callback_from_spec
from ..eventlog.recorded import Recorded
from ..eventlog.sweeps import Sweep
from ..wording import escaped
from .output import write_json
from .status import AGREES, DIFFERS, UsageError

MOST_ROWS = 10_000
"""The most combinations of settings: for each one the log is read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")
    text = "1..10, or 1,2,5, or a value"
    parser.add_argument("settings", nargs="+", metavar="CALLBACK.SETTING=VALUES", help=text)


def run(options: argparse.Namespace) -> int:
    sweep = sweep_of(options.log, options.settings)
    if options.json:
        write_json(
            [
                {
                    "settings": setting,
                    **{name: getattr(answer, name) for name in ("verdict", "stopped_at", "line", "why")},
                    "best": None if answer.best is None else attrs.asdict(answer.best),
                }
                for setting, answer in sweep
            ]
        )
    else:
        for line in str(sweep).split("\n"):
            print(escaped(line))
    return DIFFERS if any(answer.verdict == "refused" for _, answer in sweep) else AGREES


def sweep_of(log: str, settings: Sequence[str]) -> Sweep:
    """Ask the log about each combination of the settings, each written as CALLBACK.SETTING=VALUES."""
    specs = {spec["name"]: spec for spec in Recorded(log).header.body["callbacks"]}
    ranges = dict(_range(setting, specs) for setting in settings)
    combinations = math.prod(map(len, ranges.values()))
    if not 1 <= combinations <= MOST_ROWS:
        raise UsageError(f"these are {combinations} combinations, and a table has 1 to {MOST_ROWS} of them")
    rows = []
    for values in itertools.product(*ranges.values()):
        changes: dict[str, dict[str, object]] = {}
        for (name, key), value in zip(ranges, values, strict=True):
            changes.setdefault(name, {})[key] = value
        try:
            callbacks = [callback_from_spec(specs[name], **changed) for name, changed in changes.items()]
        except Exception as error:  # a factory refuses what it was never given in its own way
            raise UsageError(f"{', '.join(changes)} cannot be made with {changes}: {error}") from error
        row = {".".join(setting): value for setting, value in zip(ranges, values, strict=True)}
        rows.append((row, what_if(log, callbacks)))
    return Sweep(tuple(rows))


def _range(setting: str, specs: Mapping[str, Any]) -> tuple[tuple[str, str], Sequence[object]]:
    """The callback and its setting, and the values, of CALLBACK.SETTING=VALUES.

    Args:
        setting: as it was typed.
        specs: by name, the callbacks in the log.

    Raises:
        UsageError: it is not of this form, or there is no such callback.
    """
    target, equals, values = setting.partition("=")
    name, dot, key = target.rpartition(".")
    if not (equals and dot and name and key and values):
        raise UsageError(f"{setting!r}: write it as early_stopping.patience=1..10")
    if name not in specs:
        there_are = ", ".join(map(str, specs)) or "none"
        raise UsageError(f"there is no callback {name!r} in this log: there are {there_are}")
    if found := _WHOLE_NUMBERS.fullmatch(values):
        return (name, key), range(int(found[1]), int(found[2]) + 1)
    return (name, key), [_literal(value) for value in values.split(",")]


_WHOLE_NUMBERS = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")


def _literal(text: str) -> object:
    """A Python literal, else the text itself: a string can be typed without quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the latter two where it is nested too deeply
        return text
