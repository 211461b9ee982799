# python -m tests.benchmarks.compiled: what compile_step gains where callbacks look inside the steps.
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

from fsm_train import Callback, Supervised, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, compile_step
from tests.benchmarks.interleaved import Batch, Feed, Measured, arguments, report


def network() -> nn.Module:
    """Of digits, with much that a compiler can put together: norms and activations."""
    layers = [nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU()]
    for _ in range(4):
        layers += [nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def digits() -> list[Batch]:
    images, targets = load_digits(return_X_y=True)
    data = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(targets)
    rows = [torch.randint(len(data[0]), (128,)) for _ in range(40)]
    return [(data[0][i], data[1][i]) for i in rows]


CALLBACKS: dict[str, Callable[[], list[Callback[Any]]]] = {
    "nobody looks": list,
    "clip_grad_norm": lambda: [clip_grad_norm(1.0)],
    "accumulate(4), clip_grad_norm": lambda: [accumulate(4), clip_grad_norm(1.0)],
}


class Twin:
    """The plain loop, with what the callbacks do by hand."""

    def __init__(self, every: int, *, clips: bool) -> None:
        self.model, self.every, self.clips = network(), every, clips
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.loss_fn = nn.CrossEntropyLoss()

    def train(self, batches: Sequence[Batch]) -> None:
        for i, (inputs, target) in enumerate(batches):
            (self.loss_fn(self.model(inputs), target) / self.every).backward()
            if (i + 1) % self.every == 0:
                if self.clips:
                    nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()


def measure(name: str, steps: int, *, compiles: bool) -> Measured:
    torch.manual_seed(0)
    torch.compiler.reset()  # or torch would give up after a few optimizers
    batches = digits()
    feed = Feed(batches, Twin(4 if "accumulate" in name else 1, clips="clip" in name).train)
    model = network()
    work = Supervised(model, torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss(), feed)
    state = start(work, epochs=max(steps // len(batches), 4))
    run(state, [*([compile_step()] if compiles else []), *CALLBACKS[name]()])
    return feed.measured(f"{name}: {'compile_step()' if compiles else 'eager'}")


def main() -> None:
    args = arguments(__doc__)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's compiler uses what it deprecates
    torch.set_num_threads(1)
    steps = 320 if args.quick else 1_600
    rows = [measure(name, steps, compiles=compiles) for name in CALLBACKS for compiles in (False, True)]
    head = "| training | bare step, us | added, us (quartiles) | ratio |"
    report("Compiled steps beside the eager loop", head, {row.name: row.row() for row in rows}, {}, args)


if __name__ == "__main__":
    main()
