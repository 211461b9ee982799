# python -m tests.benchmarks.overhead [--check]: what `run` adds to a step of the bare loop, in microseconds.
from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import nn

from fsm_train import Callback, Phase, Supervised, on, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, record, schedule
from fsm_train.schedules import time_decay
from fsm_train.sinks import progress
from tests.benchmarks.interleaved import Batch, Feed, Measured, arguments, report

INSIDE = (
    *(Phase.BATCH_BEGIN, Phase.LOSS_BEGIN, Phase.LOSS_END, Phase.BACKWARD_END),
    *(Phase.STEP_BEGIN, Phase.STEP_END, Phase.BATCH_END),
)


def tiny() -> tuple[nn.Module, Any, list[Batch]]:
    batches = [(torch.randn(32, 10), torch.randn(32, 1)) for _ in range(100)]
    return nn.Linear(10, 1), nn.MSELoss(), batches


def small() -> tuple[nn.Module, Any, list[Batch]]:
    images, targets = load_digits(return_X_y=True)
    data = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(targets)
    rows = [torch.randint(len(data[0]), (64,)) for _ in range(100)]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, nn.CrossEntropyLoss(), [(data[0][i], data[1][i]) for i in rows]


def medium() -> tuple[nn.Module, Any, list[Batch]]:
    batches = [(torch.randn(128, 256), torch.randint(10, (128,))) for _ in range(20)]
    layers = (nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(*layers), nn.CrossEntropyLoss(), batches


class Twin:
    """The plain loop; with `usual`, one that does by hand what the usual callbacks do."""

    def __init__(self, model: nn.Module, loss_fn: Any, *, usual: bool) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + 1e-4 * step))
        self.train = self.usual if usual else self.plain

    def plain(self, batches: Sequence[Batch]) -> None:
        model, loss_fn, optimizer = self.model, self.loss_fn, self.optimizer
        model.train()
        for inputs, target in batches:
            loss = loss_fn(model(inputs), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def usual(self, batches: Sequence[Batch]) -> None:
        model, loss_fn, optimizer = self.model, self.loss_fn, self.optimizer
        model.train()
        for i, (inputs, target) in enumerate(batches):
            loss = loss_fn(model(inputs), target)
            (loss / 4).backward()
            if (i + 1) % 4 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                self.scheduler.step()
                optimizer.zero_grad()


ENDS = (Phase.BATCH_BEGIN, Phase.BATCH_END)


def silent(i: int, phases: Sequence[Phase] = INSIDE, every: int = 1) -> Callback[None]:
    return on(*phases, name=f"silent_{i}", every=every)(lambda state: None)


def usual_set() -> list[Callback[Any]]:
    return [
        accumulate(4),
        clip_grad_norm(1.0),
        schedule(lr=time_decay(1e-4)),
        early_stopping("train_loss", patience=10**6),
    ]


def measure(name: str, make: Callable[[], Any], steps: int, variant: str) -> Measured:
    torch.manual_seed(0)
    twin_model, loss_fn, batches = make()
    feed = Feed(batches, Twin(twin_model, loss_fn, usual=variant == "usual set").train)
    model = make()[0]
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.01), loss_fn, feed)
    state = start(work, epochs=max(steps // len(batches), 2))
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, dict[str, Any]] = {
            "no callbacks": {},
            "one at begin and end": {"callbacks": [silent(0, ENDS)]},
            "five at begin and end": {"callbacks": [silent(i, ENDS) for i in range(5)]},
            "one that watches all": {"callbacks": [silent(0)]},
            "one that watches all, every=50": {"callbacks": [silent(0, every=50)]},
            "five that watch all": {"callbacks": [silent(i) for i in range(5)]},
            "usual set": {"callbacks": usual_set()},
            "the loss in the log": {"callbacks": [record("loss")], "log": Path(folder) / "run.jsonl"},
            "progress": {"sinks": [progress(console=console)]},
        }
        run(state, **settings[variant])
    return feed.measured(f"{name}: {variant}")


GOALS = {
    "tiny: no callbacks": 8,
    "tiny: one at begin and end": 16,
    "tiny: five at begin and end": 19,
    "tiny: one that watches all": 26,
    "tiny: five that watch all": 30,
    "tiny: usual set": 24,
    "tiny: progress": 13,
}


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(1)
    variants = (
        *("no callbacks", "one at begin and end", "five at begin and end", "one that watches all"),
        *("five that watch all", "one that watches all, every=50", "usual set", "the loss in the log"),
    )
    rows: dict[str, str] = {}
    goals: dict[str, tuple[float, float]] = {}
    for make, steps in ((tiny, 10_000), (small, 6_000), (medium, 1_000)):
        for variant in (*variants, "progress"):
            found = measure(make.__name__, make, steps // (10 if args.quick else 1), variant)
            rows[found.name] = found.row()
            if found.name in GOALS:
                goals[found.name] = found.over, GOALS[found.name]
            if found.name == "tiny: no callbacks":
                goals["tiny: no callbacks, ratio"] = found.ratio, 1.03
    head = "| training | bare step, us | added, us (quartiles) | ratio |"
    report("What `run` adds to a step of the bare loop", head, rows, goals, args)


if __name__ == "__main__":
    main()
