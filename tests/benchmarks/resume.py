"""python tests/benchmarks/resume.py: what saving, verifying, restoring and winding cost, beside what torch does."""

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
from fsm_train.workloads.position import wound_forward

ROUNDS = 5


class Many(Dataset[int]):
    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> int:
        return index


def seconds(what: Callable[[], Any]) -> float:
    since = time.perf_counter()
    what()
    return time.perf_counter() - since


def against(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], goal: float) -> None:
    """ABAB, and the medians."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{name:<58} {a:8.3f} s {b:8.3f} s   {a / b:5.2f} x   (goal {goal} x)")


def main() -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"modules": [torch.randn(4_000_000) for _ in range(16)], "optimizer": {}, "generators": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ours() -> None:
            files.write(folder / "ours", "a", b"{}", parts, files.Place(1, 1, 0.0))

        def theirs() -> None:
            with (folder / "theirs.pt").open("wb") as file:
                torch.save(parts, file)
                file.flush()
                os.fsync(file.fileno())

        against("save and hash / torch.save and fsync, 256 MB", ours, theirs, 1.5)
        against("save and hash / torch.save alone, 256 MB", ours, lambda: torch.save(parts, folder / "theirs.pt"), 1.5)
        found = files.find(folder / "ours")[0]
        against("verify / torch.load", lambda: files.verify(found), lambda: torch.load(folder / "theirs.pt"), 1.5)
        against(
            "read and verify / torch.load", lambda: files.read(found), lambda: torch.load(folder / "theirs.pt"), 2.5
        )

    loader = DataLoader(Many(), 32, shuffle=True)
    model = nn.Linear(1, 1)
    Supervised(model, torch.optim.SGD(model.parameters()), nn.MSELoss(), loader)
    beginning, middle = Generators.now(), len(loader) // 2
    against(
        "wind 10,000,000 samples to the middle / a fresh start",
        lambda: next(wound_forward(loader, middle, beginning)),
        lambda: next(iter(loader)),
        1.5,
    )


if __name__ == "__main__":
    main()
