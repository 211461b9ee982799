"""python -m tests.eventlog.make_golden NAME: writes a golden log that is not there yet. Those that are, stay."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import orjson

from fsm_train import Callback, Flag, Phase, Scripted, State, Transition, extend, iterate, on, start
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, schedule
from fsm_train.eventlog import history
from fsm_train.eventlog.lines import SCHEMA, digest
from fsm_train.schedules import absolute, constant, cosine, warmup

GOLDEN = Path(__file__).parent / "golden"


@on(Phase.BATCH_END, memory=0)
def counts_too_far(state: State, count: int) -> Transition:
    """Counts by one; when the golden log "counted" was written, it counted by two."""
    return Transition(memory=count + 1)


def _everything(state: State) -> float:
    return (1.0, float("nan"), float("inf"), -0.0, 1e-320)[state.iteration % 5]


class _Paused(Scripted):
    """Interrupted in the turn of D at each fourth batch."""

    def turn(self, state: State) -> None:
        super().turn(state)
        self.interrupt = "SIGTERM" if state.iteration % 4 == 3 and state.player == "D" else None


def sealed(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write the lines with numbers and digests that fit."""
    before = ""
    with path.open("wb") as file:
        for seq, line in enumerate(lines):
            event = line.pop("event", "setup")
            line = {**line, "seq": seq}
            line.pop("digest", None)
            before = digest(before, orjson.dumps({**line, "event": event}))
            file.write(orjson.dumps({**line, "digest": before, "event": event}) + b"\n")


def golden(name: str, path: Path) -> None:
    """Write the golden log of this name."""
    valid = [3.0, 2.0, 2.5, 2.4, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    work = Scripted(batches=5, batch_size=lambda s: 7 if s.batch == 4 else 32, loss=_everything, valid_loss=valid)
    library: list[Callback[object]] = [
        accumulate(2),
        clip_grad_norm(1.0),
        schedule(lr=warmup(4).then(cosine(40)), by="step"),
        early_stopping("valid_loss", patience=3),
    ]
    match name:
        case "library":
            deque(iterate(start(work, epochs=20, seed=0), library, log=path))
        case "suspended":

            @on(Phase.BATCH_END, name="pauses", memory=0)
            def pauses(state: State, times: int) -> Transition:
                return Transition(memory=times + 1, flags=Flag.SUSPEND if times % 4 == 1 else Flag.NONE)

            state = start(work, epochs=2)
            while state.phase is not Phase.DONE:
                (state,) = deque(iterate(state, [pauses], log=path), maxlen=1)
            deque(iterate(extend(state, epochs=1), [], log=path))
        case "unwatched":
            big = Scripted(batches=1000, valid_loss=valid)
            deque(iterate(start(big, epochs=3), log=path))
        case "settings":
            callbacks = [
                schedule(lr=absolute(constant(0.1)), by="epoch", name="fixed"),
                accumulate({0: 1, 2: 4}),
            ]
            deque(iterate(start(work, epochs=3), callbacks, log=path))
        case "counted":
            two = Callback("counts_too_far", (Phase.BATCH_END,), lambda s, count: Transition(memory=count + 2), 0)
            deque(iterate(start(Scripted(), epochs=1), [two], log=path))
        case "history":
            # Begun elsewhere, with a history that takes several lines; then continued, twice from the same place.
            falling = Scripted(loss=_everything, valid_loss=lambda s: 1 / (1 + s.iteration))
            elsewhere = deque(iterate(start(falling, epochs=9, seed=0)), maxlen=1).pop()
            special = attrs.evolve(elsewhere, history=(*elsewhere.history, {"valid_loss": -0.0, "steps": 2**70}))
            with mock.patch.object(history, "MOST_BYTES", 200):
                first = deque(iterate(extend(special, epochs=1), [early_stopping()], log=path), maxlen=1).pop()
            deque(iterate(extend(first, epochs=3), [early_stopping()], log=path))
            deque(iterate(extend(first, epochs=2), [early_stopping()], log=path))
        case "turns":
            # Suspended between the turns of a batch, with a window of one player pending, and continued.
            players = {"D": 1, "G": 2}
            losses = _Paused(batches=5, loss=_everything, valid_loss=valid, players=players)
            used: list[Callback[object]] = [
                accumulate(2, player="D"),
                schedule(lr=cosine(8), player="G"),
                early_stopping("valid_loss", patience=3),
            ]
            state = start(losses, epochs=6, seed=0)
            while state.phase is not Phase.DONE:
                (state,) = deque(iterate(state, used, log=path), maxlen=1)
        case "jump" | "torn" | "newer":
            golden("library", path)
            lines = [orjson.loads(line) for line in path.read_bytes().splitlines()[:60]]
            if name == "jump":
                del lines[20:30]
            elif name == "newer":
                lines[0]["schema"] = 99
            else:
                lines[30] = {"seq": 30}
            sealed(path, lines)
        case _:
            raise SystemExit(f"there is no golden log {name!r}")


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        target = GOLDEN / f"{asked}-{SCHEMA}.jsonl"
        if target.exists():
            raise SystemExit(f"{target} is there, and is never written anew")
        golden(asked, target)
