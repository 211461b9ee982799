"""python -m tests.benchmarks.replay: how quickly a log is read, replayed, and asked from the shell."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from fsm_train import Phase, Scripted, State, on, read_log, replay, run, start, what_if
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, schedule
from fsm_train.eventlog.entries import entries
from fsm_train.schedules import cosine, warmup


@on(Phase.BATCH_END, needs={"loss"})
def watches_the_loss(state: State) -> None:
    """Looks at each batch."""


CALLBACKS = [
    accumulate(4),
    clip_grad_norm(1.0),
    schedule(lr=warmup(100).then(cosine(10_000))),
    early_stopping(patience=100),
]


def best(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the process's own time, in the quickest of some tries."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "run.jsonl", Path(folder) / "small.jsonl"
        workload = Scripted(batches=1000, loss=1.0, valid_loss=lambda state: 1 / (1 + state.epoch))
        run(start(workload, epochs=10), [*CALLBACKS, watches_the_loss], log=path)
        lines = sum(1 for _ in entries(path))
        phases = sum(1 for _ in path.open("rb"))
        assert phases == lines
        rows = {
            "checked": lambda: deque(entries(path), maxlen=0),
            "read as records": lambda: deque(read_log(path), maxlen=0),
            "replayed with five callbacks": lambda: replay(path, [*CALLBACKS, watches_the_loss]),
            "asked what if": lambda: what_if(path, [early_stopping(patience=50)]),
        }
        for name, work in rows.items():
            seconds = best(work)
            print(f"{name:<30} {lines / seconds:10,.0f} lines a second  ({seconds / lines * 1e6:.1f} us a line)")
        run(start(Scripted(batches=1000, valid_loss=1.0), epochs=8), CALLBACKS, log=small)
        lines = sum(1 for _ in entries(small))
        for command in (["replay"], ["show"]):
            found = []
            for _ in range(5):
                begin = time.perf_counter()
                subprocess.run([sys.executable, "-m", "fsm_train", *command, small], check=True, capture_output=True)
                found.append(time.perf_counter() - begin)
            print(f"fsm-train {command[0]:<8} {lines:6,} lines in {min(found):.2f} s, imports included")


if __name__ == "__main__":
    main()
