"""Log files for tests, and changes to one that only a replay can find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

import orjson

from fsm_train import Callback, Phase, Scripted, State, Transition, extend, on, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, record, reduce_on_plateau, schedule
from fsm_train.eventlog.lines import digest
from fsm_train.schedules import cosine, warmup

Lines = list[dict[str, Any]]
LOSSES = [3.0, 2.0, 2.5, 2.4, 1.0, 1.1, 1.2, 1.3]


def library() -> list[Callback[Any]]:
    """Callbacks that can be made from a header alone."""
    return [
        accumulate(2),
        clip_grad_norm(1.0),
        schedule(lr=warmup(4).then(cosine(40))),
        early_stopping("valid_loss", patience=3),
    ]


@on(Phase.BATCH_END, memory=(0.0, 0.0), needs={"loss"})
def smoothed(state: State, seen: tuple[float, float]) -> Transition:
    """Remember the loss and its running mean, to the last bit."""
    return Transition(memory=(state.facts["loss"], 0.9 * seen[1] + 0.1 * state.facts["loss"]))


def workload(losses: list[float] = LOSSES) -> Scripted:
    return Scripted(
        batches=4,
        batch_size=lambda state: 32 if state.batch < 3 else 7,
        loss=lambda state: 1 / (1 + state.iteration),
        valid_loss=losses,
    )


def logged(path: Path, callbacks: list[Callback[Any]] | None = None, epochs: int = 8) -> State:
    """Train, and log it."""
    return run(start(workload(), epochs=epochs, seed=0), library() if callbacks is None else callbacks, log=path)


def various_logs(folder: Path) -> Sequence[Path]:
    """One with answers and facts, one that was continued, and one with values that JSON has no form for."""
    whole, extended, odd = (folder / f"{name}.jsonl" for name in ("whole", "extended", "odd"))
    logged(whole, [*library(), smoothed, record("loss"), reduce_on_plateau(patience=1)], epochs=3)
    state = run(start(workload(), epochs=2, seed=0), library(), log=extended)
    run(extend(state, epochs=1), library(), log=extended)
    values = [0.5, nan, inf, -inf, -0.0, 1e16, 1e-7, 2**62, 3]
    rates = Scripted(batches=3, loss=values, valid_loss=[nan, -0.0, inf], hyper={"lr": (0.1, 0.2)})
    run(start(rates, epochs=3), [record("loss")], log=odd)
    return whole, extended, odd


def lines_of(path: Path) -> Lines:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def write(path: Path, lines: Lines) -> None:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


def forged(path: Path, change: Callable[[Lines], object]) -> None:
    """Change the log, and make sequence numbers and digests consistent again."""
    lines = lines_of(path)
    change(lines)
    before = ""
    for seq, line in enumerate(lines):
        event = line.pop("event")
        line.pop("digest")
        line["seq"] = seq
        before = digest(before, orjson.dumps({**line, "event": event}))
        line["digest"], line["event"] = before, event
    write(path, lines)


def index(lines: Lines, event: str, nth: int = 1) -> int:
    """Where in the lines the n-th one of this phase is."""
    return [i for i, line in enumerate(lines) if line["event"] == event][nth - 1]
