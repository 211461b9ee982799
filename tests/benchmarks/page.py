"""python -m tests.benchmarks.page: how much the page of `fsm-train view` weighs, and how quickly it opens and follows.

It needs the extra `browser`, chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fsm_train import Scripted, State, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, record, schedule
from fsm_train.schedules import cosine, warmup
from fsm_train.view.answers import replay_verdict
from fsm_train.view.building import page
from fsm_train.view.machine import packed_machine
from fsm_train.view.packing import packed_run
from tests.view.browser import Page, chromium

LINES_PER_BATCH = 2.5
ROW = "{:>8} {:>9} {:>9} {:>8} {:>9} {:>9} {:>11} {:>7} {:>9}"
STEP = """
    const done = arguments[0];
    const key = new KeyboardEvent("keydown", { key: "%s", bubbles: true });
    const begin = performance.now();
    document.body.dispatchEvent(key);
    const acted = performance.now() - begin;
    requestAnimationFrame(() => setTimeout(() => done([acted, performance.now() - begin]), 0));
"""


def drawn(what: Callable[[State, random.Random], float]) -> Callable[[State], float]:
    return lambda state: what(state, random.Random(f"{state.epoch} {state.iteration} {state.valid_batch}"))


def logged(path: Path, lines: int) -> None:
    """A training with five callbacks, whose log has about this many lines."""
    batches = max(4, 2 * round(lines / 100 / LINES_PER_BATCH))
    work = Scripted(
        batches=batches,
        loss=drawn(lambda state, chance: 2 * math.exp(-state.iteration / 5000) + 0.2 * chance.random()),
        valid_loss=drawn(lambda state, chance: 1 / (1 + state.epoch) + 0.01 * chance.random()),
        grad_norm=drawn(lambda _, chance: chance.expovariate(1)),
        elapsed=lambda state: 0.01 * state.iteration,
    )
    callbacks = [
        accumulate(2),
        clip_grad_norm(1.0),
        schedule(lr=warmup(10).then(cosine(lines // 5))),
        early_stopping(patience=1000),
        record("loss", "grad_norm", "elapsed"),
    ]
    run(start(work, epochs=max(1, round(lines / (batches * LINES_PER_BATCH + 3))), seed=0), callbacks, log=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the small logs")
    quick = parser.parse_args().quick
    print(
        ROW.format("lines", "log, kB", "page, kB", "made, s", "open, ms", "step, ms", "to a frame", "worst", "zoom, ms")
    )
    with tempfile.TemporaryDirectory() as folder, chromium() as driver:
        driver.set_script_timeout(60)
        for lines in (1000, 10_000) if quick else (1000, 10_000, 100_000):
            log, html = Path(folder) / "run.jsonl", Path(folder) / "run.html"
            log.unlink(missing_ok=True)
            logged(log, lines)
            begin = time.perf_counter()
            packed = packed_run(log)
            data = {**packed.packed(), "replay": replay_verdict(log, packed), "what_if": []}
            html.write_text(page({"runs": [data], "machine": packed_machine(), "differences": []}, "run"))
            made = time.perf_counter() - begin
            opened = Page(driver, html)
            steps = [driver.execute_async_script(STEP % key) for key in ["k"] * 30 + ["N"] * 10 + ["Home", "End"] * 5]
            zooms = [driver.execute_async_script(STEP % key)[0] for key in "+++++-----" * 2]
            acted, framed = (statistics.median(column) for column in zip(*steps, strict=True))
            sizes = [f"{path.stat().st_size / 1000:.0f}" for path in (log, html)]
            times = [1000 * opened.seconds, acted, framed, max(step[1] for step in steps), max(zooms)]
            print(ROW.format(len(packed.numbers), *sizes, f"{made:.1f}", *(f"{time:.1f}" for time in times)))
            opened.check()


if __name__ == "__main__":
    main()
