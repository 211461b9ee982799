"""python -m tests.benchmarks.replay: how quickly a log is read, replayed, and asked from the shell."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fsm_train import Callback, Phase, Scripted, State, on, read_log, replay, run, start, what_if
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, schedule
from fsm_train.eventlog.entries import entries
from fsm_train.schedules import cosine, warmup
from tests.benchmarks.interleaved import arguments, report


@on(Phase.BATCH_END, needs={"loss"})
def watches_the_loss(state: State) -> None:
    """Looks at each batch."""


def usual(steps: int) -> list[Callback[Any]]:
    """The usual set, for a training of so many steps."""
    rate = warmup(100).then(cosine(steps - 100))
    return [accumulate(4), clip_grad_norm(1.0), schedule(lr=rate), early_stopping(patience=100)]


CALLBACKS = [*usual(steps=2_500), watches_the_loss]  # of ten epochs of a thousand batches


def seconds_of(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of the process's own time for each, when they take turns."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begin = time.process_time()
            work()
            found[name].append(time.process_time() - begin)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def from_the_shell(*command: str, rounds: int) -> tuple[float, float]:
    """The median seconds that a command takes: of the processor, which a busy machine hardly changes; and in all."""
    used, passed = [], []
    for _ in range(rounds):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "fsm_train", *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        passed.append(time.perf_counter() - begin)
    return statistics.median(used), statistics.median(passed)


def trained(batches: int, epochs: int) -> None:
    """The same training without a log: what the interpreter and the callbacks take for themselves."""
    run(start(Scripted(batches=batches, loss=1.0, valid_loss=_falling), epochs=epochs), CALLBACKS)


def _falling(state: State) -> float:
    return 1 / (1 + state.epoch)


def main() -> None:
    args = arguments(__doc__)
    rounds = 2 if args.quick else 7
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "run.jsonl", Path(folder) / "small.jsonl"
        workload = Scripted(batches=1000, loss=1.0, valid_loss=_falling)
        run(start(workload, epochs=10), CALLBACKS, log=path)
        lines = sum(1 for _ in entries(path))
        works = {
            "trained again, without a log": lambda: trained(1000, 10),
            "checked": lambda: deque(entries(path), maxlen=0),
            "read as records": lambda: deque(read_log(path), maxlen=0),
            "replayed with five callbacks": lambda: replay(path, CALLBACKS),
            "asked what if": lambda: what_if(path, [early_stopping(patience=50)]),
        }
        us = {name: seconds / lines * 1e6 for name, seconds in seconds_of(works, rounds).items()}
        rows = {
            name: f"| {name} | {1e6 / each:,.0f} lines a second | {each:.1f} us a line |" for name, each in us.items()
        }
        run(start(Scripted(batches=1000, valid_loss=1.0), epochs=8), usual(steps=2_000), log=small)
        lines = sum(1 for _ in entries(small))
        shell = {command: from_the_shell(command, str(small), rounds=rounds) for command in ("replay", "show")}
    for command, (used, passed) in shell.items():
        name = f"fsm-train {command}, {lines:,} lines, imports and all"
        rows[name] = f"| {name} | {used:.2f} s | {passed:.2f} s of the clock |"
    goals = {
        "replayed, us a line": (us["replayed with five callbacks"], 10.0),
        "fsm-train replay of 10,000 lines, s": (shell["replay"][0], 1.0),
    }
    report("Reading a log, and asking it", "| what | measured | that is |", rows, goals, args)


if __name__ == "__main__":
    main()
