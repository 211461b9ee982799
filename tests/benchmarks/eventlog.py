"""python -m tests.benchmarks.eventlog: what a line of the log costs to write, beside structlog's default."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from fsm_train import EventLog, Phase, Scripted, State, Transition, on, start
from fsm_train.callbacks import accumulate
from fsm_train.eventlog.lines import answers_of, line_of
from fsm_train.testing import at
from tests.benchmarks.interleaved import arguments, report

LINES = 20_000


def best(work: Callable[[], object], times: int) -> float:
    """Microseconds a line of the process's own time, in the quickest of some tries."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        work()
        found.append((time.process_time() - begin) / LINES * 1e6)
    return min(found)


@on(Phase.BATCH_END)
def silent(state: State) -> None:
    """Looks, so that there is a line."""


def main() -> None:
    args = arguments(__doc__)
    times = 2 if args.quick else 7
    state = at(Phase.LOSS_END, loss=0.5, step=17, iteration=34, batch=4, has_valid=True)
    answers: dict[str, Transition] = {"accumulate": accumulate(2).decide(state, 1.0) or Transition()}
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "run.jsonl")
        workload = Scripted()
        log.wrap_workload(workload, start(workload, epochs=1))
        log.open(start(workload, epochs=1), [accumulate(2), silent])

        def write(says: dict[str, Transition]) -> Callable[[], None]:
            def work() -> None:
                for _ in range(LINES):
                    log.see(state, says)

            return work

        found = {
            "ours, without an answer": best(write({}), times),
            "ours, with an answer": best(write(answers), times),
        }
        log.close()
    default = structlog.wrap_logger(
        structlog.WriteLogger(io.StringIO()), processors=[structlog.processors.JSONRenderer(serializer=json.dumps)]
    )

    def plain() -> None:
        for seq in range(LINES):
            default.info("loss_end", seq=seq, **line_of(state, answers_of(answers)), facts=dict(state.facts))

    goals = {name: (microseconds, 15.0) for name, microseconds in found.items()}
    found["structlog's default, with an answer"] = best(plain, times)
    rows = {name: f"| {name} | {microseconds:.1f} us |" for name, microseconds in found.items()}
    report("Writing a line of the event log", "| what | a line |", rows, goals, args)


if __name__ == "__main__":
    main()
