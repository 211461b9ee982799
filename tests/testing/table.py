"""The tables of what the checks find: `python -m tests.testing.table` writes them into fsm_train/testing/README.md."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fsm_train import callbacks
from fsm_train.testing import CHECKS, CallbackCheckError, check_callback
from tests.testing.hurried import HURRIED
from tests.testing.library import EXAMPLES, EXPECTED
from tests.testing.mutants import MUTANTS

README = Path(__file__).parents[2] / "fsm_train" / "testing" / "README.md"


def main() -> None:
    text = README.read_text()
    for name, rows in {"mutants": mutants(), "hurried": hurried(), "library": library()}.items():
        table = f"<!-- {name} -->\n" + "\n".join(rows) + f"\n<!-- /{name} -->"
        text = re.sub(f"<!-- {name} -->.*<!-- /{name} -->", lambda _, table=table: table, text, flags=re.DOTALL)
    README.write_text(text)


def mutants() -> list[str]:
    rows = ["| what holds for every callback | the mutant that breaks it, and no other | its check |", "|---|---|---|"]
    for name, mutant in MUTANTS.items():
        rows.append(f"| {CHECKS[name].sentence.rstrip('.')} | `{mutant.name}` | {_finder(mutant)} |")
    return rows


def hurried() -> list[str]:
    rows = [f"| {make.__name__.replace('_', ' ')} | {_found(make)} |" for make in HURRIED]
    return ["| written in a hurry | found by |", "|---|---|", *rows]


def library() -> list[str]:
    rows = ["| callback of the library | trainings | consultations | CPU seconds | |", "|---|---|---|---|---|"]
    for name in callbacks.__all__:
        expected = EXPECTED.get(name, {})
        for make in EXAMPLES[name]:
            began = _cpu_seconds()  # the clock on the wall would tell of others on the machine
            report = check_callback(make(), expected_failures=expected)
            seconds = _cpu_seconds() - began
            told = "; ".join(f"`{check}` fails on purpose: {why}" for check, why in expected.items())
            counted = f"{report.examples} | {report.consultations} | {seconds:.1f}"
            rows.append(f"| `{report.callback}` | {counted} | {told} |")
    return rows


def _cpu_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    return sum(os.times()[:4])


def _finder(mutant: object, examples: int = 30) -> str:
    try:
        check_callback(mutant, examples=examples)  # type: ignore[arg-type]
    except CallbackCheckError as error:
        return ", ".join(f"`{name}`" for name in error.report.failed)
    return "**nobody**"


def _found(make: object) -> str:
    try:
        callback = make()  # type: ignore[operator]
    except TypeError:
        return "refused when it is written"
    return _finder(callback, 100)


if __name__ == "__main__":
    main()
