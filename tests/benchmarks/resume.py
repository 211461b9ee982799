"""python -m tests.benchmarks.resume: what saving, verifying, restoring and winding cost, beside what torch does.

A save that leaves a good file at any moment writes a new one and removes the old one after it. torch.save
is therefore measured in that way too; where it writes over its own last file it is quicker, since the
memory for it is at hand, and that is a line of its own.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fsm_train import Supervised
from fsm_train.workloads import checkpoint as files
from fsm_train.workloads.generators import Generators
from fsm_train.workloads.manifest import Place, find, verify
from fsm_train.workloads.position import wound_forward

ROUNDS = 11


class Many(Dataset[int]):
    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> int:
        return index


def seconds(what: Callable[[], Any]) -> float:
    os.sync()  # what others have left to be written is not to be waited for here
    since = time.perf_counter()
    what()
    return time.perf_counter() - since


def against(name: str, goal: float, ours: Callable[[], Any], *theirs: Callable[[], Any]) -> None:
    """ABAB, and the medians; the first round is for warming up."""
    rounds = [[seconds(each) for each in (ours, *theirs)] for _ in range(ROUNDS + 1)][1:]
    a, *others = (statistics.median(times) for times in zip(*rounds, strict=True))
    for what, b in zip(name.split("; "), others, strict=True):
        print(f"{what:<66} {a:8.3f} s {b:8.3f} s   {a / b:5.2f} x   (goal {goal} x)")


def main() -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"modules": [torch.randn(4_000_000) for _ in range(16)], "optimizer": {}, "generators": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ours() -> None:
            files.write(folder / "ours", "a", b"{}", parts, Place(1, 1, 0.0))

        def theirs(name: str, *, new: bool, flush: bool) -> None:
            path = folder / (f"{name}-new" if new else name)
            with path.open("wb") as file:
                torch.save(parts, file)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            if new:
                path.rename(folder / name)

        against(
            "save 256 MB / torch.save and fsync; save / torch.save; save / torch.save over its own last file",
            1.5,
            ours,
            lambda: theirs("flushed.pt", new=True, flush=True),
            lambda: theirs("alone.pt", new=True, flush=False),
            lambda: theirs("over.pt", new=False, flush=False),
        )
        found = find(folder / "ours")[0]
        load = lambda: torch.load(folder / "alone.pt")
        against("verify / torch.load", 1.5, lambda: verify(found), load)
        against("read and verify / torch.load", 2.5, lambda: files.read(found), load)

    loader = DataLoader(Many(), 32, shuffle=True)
    model = nn.Linear(1, 1)
    Supervised(model, torch.optim.SGD(model.parameters()), nn.MSELoss(), loader)
    beginning, middle = Generators.now(), len(loader) // 2
    against(
        "wind 10,000,000 samples to the middle / a fresh start",
        1.5,
        lambda: next(wound_forward(loader, middle, beginning)),
        lambda: next(iter(loader)),
    )


if __name__ == "__main__":
    main()
