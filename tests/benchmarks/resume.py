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
from fsm_train.checkpoints.folder import Folder
from fsm_train.checkpoints.manifest import SavePoint, list_folder, verify
from fsm_train.checkpoints.reading import read_files
from fsm_train.data.generators import Generators
from fsm_train.data.position import fast_forward
from tests.benchmarks.interleaved import arguments, report
from tests.checkpoints.crowd import crowded


class Many(Dataset[int]):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        return index


def seconds(what: Callable[[], Any]) -> float:
    os.sync()  # what others have left to be written is not to be waited for here
    since = time.perf_counter()
    what()
    return time.perf_counter() - since


def main() -> None:
    args = arguments(__doc__)
    size = 1 if args.quick else 4  # in 64 MB
    samples = 1_000_000 if args.quick else 10_000_000
    rows: dict[str, str] = {}
    goals: dict[str, tuple[float, float]] = {}

    def against(
        goal: float, ours: Callable[[], Any], rounds: int = 4 if args.quick else 12, **theirs: Callable[[], Any]
    ) -> None:
        """ABAB, and the medians; the first round is for warming up."""
        times = [[seconds(each) for each in (ours, *theirs.values())] for _ in range(rounds)][1:]
        a, *others = (statistics.median(of_one) for of_one in zip(*times, strict=True))
        for name, b in zip((name.replace("_", " ") for name in theirs), others, strict=True):
            rows[name] = f"| {name} | {a:.3f} s | {b:.3f} s | {a / b:.2f} | {goal} |"
            goals[name] = (a / b, goal)

    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "modules": [torch.randn(size * 1_000_000) for _ in range(16)],
        "optimizer": {},
        "generators": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        held = Folder(folder / "ours")

        def ours() -> None:
            held.write("a", b"{}", parts, SavePoint(1, 1, 0.0))

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
            1.5,
            ours,
            save_against_torch_save_and_fsync=lambda: theirs("flushed.pt", new=True, flush=True),
            save_against_torch_save=lambda: theirs("alone.pt", new=True, flush=False),
            save_against_torch_save_over_its_own_last_file=lambda: theirs("over.pt", new=False, flush=False),
        )
        crowd = 1_000 if args.quick else 10_000
        few, many = (Folder(crowded(folder / f"{neighbours}", neighbours)) for neighbours in (10, crowd))
        small: dict[str, Any] = {"modules": [], "optimizer": {}, "generators": {}}

        def beside(held: Folder) -> Callable[[], None]:
            return lambda: held.write("a", b"{}", small, SavePoint(1, 1, 0.0))

        against(1.2, beside(many), rounds=12 if args.quick else 100, **{f"save_beside_{crowd:,}_and_10": beside(few)})
        many.close()
        rows["taken"] = f"| taking a folder with {crowd:,} | {seconds(lambda: Folder(many.path)):.3f} s | | | |"

        found = list_folder(folder / "ours").checkpoints[0]
        load = lambda: torch.load(folder / "alone.pt")
        against(1.5, lambda: verify(found), verify_against_torch_load=load)
        against(2.5, lambda: read_files(found), read_and_verify_against_torch_load=load)

    loader = DataLoader(Many(samples), 32, shuffle=True)
    model = nn.Linear(1, 1)
    Supervised(model, torch.optim.SGD(model.parameters()), nn.MSELoss(), loader)
    beginning, middle = Generators.now(), len(loader) // 2
    against(
        1.5,
        lambda: next(fast_forward(loader, middle, beginning, beginning)),
        wind_to_the_middle_against_a_fresh_start=lambda: next(iter(loader)),
    )
    title = f"Saving {64 * size} MB, reading them, and winding {samples:,} samples forward"
    report(title, "| what | ours | theirs | ratio | goal |", rows, goals, args)


if __name__ == "__main__":
    main()
