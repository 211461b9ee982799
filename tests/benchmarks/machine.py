# python -m tests.benchmarks.machine [--check]: what the machine costs on a workload that does nothing.
from __future__ import annotations

import gc
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from fsm_train import Callback, Phase, Scripted, on, run, start
from fsm_train.core.phase import Flag
from fsm_train.core.values import NO_FACTS
from fsm_train.testing import at
from tests.benchmarks.interleaved import arguments, report
from tests.benchmarks.overhead import INSIDE


def silent(i: int) -> Callback[None]:
    return on(*INSIDE, name=f"silent_{i}")(lambda state: None)


def best_of(times: int, measure: Callable[[], float]) -> float:
    """The quickest of several: what the code costs when nothing disturbs it."""
    gc.collect()
    return min(measure() for _ in range(times))


def per_step(callbacks: int, *, epochs: int = 5, batches: int = 1000) -> float:
    """Microseconds a step, with so many callbacks that watch every phase of a batch."""
    work = Scripted(batches=batches)
    began = time.perf_counter()
    run(start(work, epochs=epochs), [silent(i) for i in range(callbacks)])
    return (time.perf_counter() - began) / (epochs * batches) * 1e6


def per_state() -> float:
    state: Any = at(Phase.BATCH_END)
    draft = state.draft()
    began = time.perf_counter()
    for _ in range(20_000):
        draft.state(Phase.BATCH_END, Flag.NONE, NO_FACTS)
    return (time.perf_counter() - began) / 20_000 * 1e6


def import_time() -> float:
    """Milliseconds to import the package, beyond starting Python."""

    def once(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - began) * 1e3

    return best_of(7, lambda: once("import fsm_train")) - best_of(7, lambda: once("pass"))


def memory() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    args = arguments(__doc__)
    times = 2 if args.quick else 7
    fused, watched, five = (best_of(times, lambda n=n: per_step(n)) for n in (0, 1, 5))  # type: ignore[misc]
    phases = len(INSIDE)
    short, long = (best_of(2, lambda n=n: per_step(0, epochs=n)) for n in (2, 20 if args.quick else 200))  # type: ignore[misc]
    before = memory()
    per_step(0, epochs=100 if args.quick else 1000)
    grown = memory() - before
    figures = {
        "a step, nobody watching": (fused, 6.0, "us"),
        "a step, every phase watched": (watched, 30.0, "us"),
        "each consultation of a callback that says nothing": ((five - watched) / 4 / phases, 1.0, "us"),
        "a State": (best_of(times, per_state), 10.0, "us"),
        "a step of a hundred times as many, as a ratio": (long / short, 1.25, ""),
        "memory grown over a million steps": (grown, 8.0, "MiB"),
        "import fsm_train": (import_time(), 100.0, "ms"),
    }
    rows = {name: f"| {name} | {value:.2f} {unit} | {goal:g} |" for name, (value, goal, unit) in figures.items()}
    goals = {name: (value, goal) for name, (value, goal, _) in figures.items()}
    report("The machine alone, on a workload that does nothing", "| what | measured | goal |", rows, goals, args)


if __name__ == "__main__":
    main()
