"""The tables of what the checks find: `python -m tests.testing.table` prints them for the README."""

from __future__ import annotations

import contextlib
import time

from fsm_train import callbacks
from fsm_train.testing import CHECKS, CallbackCheckError, check_callback
from tests.testing.hurried import HURRIED
from tests.testing.library import EXAMPLES, EXPECTED
from tests.testing.mutants import MUTANTS


def main() -> None:
    print("| what holds for every callback | the mutant that breaks it, and no other | its check |\n|---|---|---|")
    for name, mutant in MUTANTS.items():
        print(f"| {CHECKS[name].sentence.rstrip('.')} | `{mutant.name}` | {_finder(mutant)} |")

    print("\n| written in a hurry | found by |\n|---|---|")
    for make in HURRIED:
        print(f"| {make.__name__.replace('_', ' ')} | {_found(make)} |")

    print("\n| callback of the library | trainings | consultations | CPU seconds | |\n|---|---|---|---|---|")
    for name in callbacks.__all__:
        expected = EXPECTED.get(name, {})
        for make in EXAMPLES[name]:
            began = time.process_time()
            report = check_callback(make(), expected_failures=expected)
            seconds = time.process_time() - began  # the clock on the wall would tell of others on the machine
            told = "; ".join(f"`{check}` fails on purpose: {why}" for check, why in expected.items())
            print(f"| `{report.callback}` | {report.examples} | {report.consultations} | {seconds:.1f} | {told} |")


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
    began = time.perf_counter()
    with contextlib.suppress(BrokenPipeError):
        main()
    print(f"\nMade in {time.perf_counter() - began:.0f} seconds.")
