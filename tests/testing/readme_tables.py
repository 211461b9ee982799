"""The tables in fsm_train/testing/README.md: `python -m tests.testing.readme_tables` writes them."""

from __future__ import annotations

import os
from pathlib import Path

import fsm_train.testing
from fsm_train import callbacks
from fsm_train.testing import CHECKS, CallbackCheckError, check_callback
from tests.generated import write_block
from tests.testing.common_mistakes import MISTAKES
from tests.testing.library_examples import EXAMPLES, EXPECTED
from tests.testing.mutant_callbacks import MUTANTS

README = Path(fsm_train.testing.__file__).with_name("README.md")


def main() -> None:
    for name, rows in {"mutants": mutants(), "mistakes": mistakes(), "library": library()}.items():
        write_block(README, name, "\n".join(rows))


def mutants() -> list[str]:
    rows = ["| what holds for every callback | the mutant that breaks it, and no other | its check |", "|---|---|---|"]
    for name, mutant in MUTANTS.items():
        rows.append(f"| {CHECKS[name].sentence.rstrip('.')} | `{mutant.name}` | {_failed_checks(mutant)} |")
    return rows


def mistakes() -> list[str]:
    rows = [f"| {make.__name__.replace('_', ' ')} | {_found_by(make)} |" for make in MISTAKES]
    return ["| mistake | found by |", "|---|---|", *rows]


def library() -> list[str]:
    rows = ["| callback of the library | trainings | consultations | CPU seconds | |", "|---|---|---|---|---|"]
    for name in callbacks.__all__:
        expected = EXPECTED.get(name, {})
        for make in EXAMPLES[name]:
            began = _cpu_seconds()  # other processes on the machine do not change it
            report = check_callback(make(), expected_failures=expected)
            seconds = _cpu_seconds() - began
            reasons = "; ".join(f"`{check}` fails on purpose: {why}" for check, why in expected.items())
            counted = f"{report.examples} | {report.consultations} | {seconds:.1f}"
            rows.append(f"| `{report.callback}` | {counted} | {reasons} |")
    return rows


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _failed_checks(mutant: object, examples: int = 30) -> str:
    try:
        check_callback(mutant, examples=examples)  # type: ignore[arg-type]
    except CallbackCheckError as error:
        return ", ".join(f"`{name}`" for name in error.report.failed)
    return "**no check**"


def _found_by(make: object) -> str:
    try:
        callback = make()  # type: ignore[operator]
    except TypeError:
        return "refused when it is written"
    return _failed_checks(callback, 100)


if __name__ == "__main__":
    main()
