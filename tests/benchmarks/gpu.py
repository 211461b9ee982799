# python -m tests.benchmarks.gpu [--check] [--rounds N]: the bare loop, `run` and compiled steps: steps a second, syncs.
"""What `run` costs on a GPU, and what whole steps bring.

Each training runs over EPOCHS passes of the same batches in one go. A pass is timed from its beginning
to the beginning of the next, with the device idle at both; the first two are not counted, so that
warming up, compiling and capturing are not. Batches that are fed from the CPU stay a plain list, of
which one may be fetched ahead: there all passes are timed together. Trainings take turns, A B C A B C,
so that a change of clock falls on all; quoted are medians.

Syncs are the waits of the CPU for the device within a training of few and of many batches, counted by
the profiler; the difference is what a batch costs, without what begins and ends a training.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fsm_train import Callback, Supervised, run, start
from fsm_train.callbacks import compile_step, record
from tests.benchmarks.interleaved import arguments, report

Batch = tuple[torch.Tensor, torch.Tensor]
Train = Callable[[nn.Module, torch.optim.Optimizer, Iterable[Batch], int], None]

BATCHES = {"small": 200, "middle": 40, "fed": 40}  # a pass; a step of the middle network takes milliseconds
EPOCHS, ROUNDS = 6, 5
WARM_UP = 2  # passes
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "small":
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).cuda()
    layers = [nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()) for _ in range(8)]
    return nn.Sequential(*layers, nn.Linear(2048, 10)).cuda()


def made(kind: str) -> list[Batch]:
    """A few batches again and again: on the device, or for "fed" in pinned memory."""
    inputs, samples = (64, 64) if kind == "small" else (2048, 2048)
    generator = torch.Generator().manual_seed(0)
    few = [
        (torch.randn(samples, inputs, generator=generator), torch.randint(10, (samples,), generator=generator))
        for _ in range(8)
    ]
    few = [(x.pin_memory(), y.pin_memory()) if kind == "fed" else (x.cuda(), y.cuda()) for x, y in few]
    return [few[i % 8] for i in range(BATCHES[kind])]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


class Passes:
    """Batches that note when each pass over them begins, with the device idle."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.began: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        self.note()
        return iter(self.batches)

    def note(self) -> None:
        torch.cuda.synchronize()
        self.began.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """How long each pass took, once it is over for all that counts."""
        return [after - before for before, after in zip(self.began, self.began[1:], strict=False)]


def bare(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterable[Batch],
    epochs: int,
    *,
    read: bool = False,
    move: bool = False,
) -> None:
    """The five-line loop; with `read` it reads each loss, and with `move` it brings the batches to the device."""
    loss_fn = nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        for inputs, target in data:
            if move:
                inputs, target = inputs.cuda(non_blocking=True), target.cuda(non_blocking=True)
            loss = loss_fn(model(inputs), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if read:
                loss.item()


def with_run(callbacks: Callable[[], list[Callback[Any]]], **settings: Any) -> Train:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterable[Batch], epochs: int) -> None:
        run(start(Supervised(model, optimizer, nn.CrossEntropyLoss(), data, **settings), epochs=epochs), callbacks())

    return train


VARIANTS: dict[str, Train] = {
    "bare loop": bare,
    "run": with_run(list),
    "run, compile_step('graph')": with_run(lambda: [compile_step("graph")]),
    "run, compile_step()": with_run(lambda: [compile_step()]),
    "run, compile_step('reduce-overhead')": with_run(lambda: [compile_step("reduce-overhead")]),
    "bare loop that reads the loss": lambda *parts: bare(*parts, read=True),
    "run, with a callback that reads the loss": with_run(lambda: [record("loss")]),
    "run, which reads every 50th loss": with_run(lambda: [record("loss", every=50)]),
}
FED: dict[str, Train] = {
    "bare loop": lambda *parts: bare(*parts, move=True),
    "run": with_run(list),
    "run, ahead=False": with_run(list, ahead=False),
    "bare loop that reads the loss": lambda *parts: bare(*parts, read=True, move=True),
    "run, with a callback that reads the loss": with_run(lambda: [record("loss")]),
}


def seconds(train: Train, kind: str, data: list[Batch], epochs: int) -> float:
    """Of one pass, in a training that is under way."""
    model = network(kind)
    optimizer = sgd(model)
    torch.compiler.reset()  # or torch would give up after a few optimizers
    if kind == "fed":
        train(model, optimizer, data, 1)
        torch.cuda.synchronize()
        began = time.perf_counter()
        train(model, optimizer, data, epochs)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / epochs
    passes = Passes(data)
    train(model, optimizer, passes, epochs)
    passes.note()
    return statistics.median(passes.seconds()[WARM_UP:])


def waits(train: Train, kind: str, data: Sequence[Batch]) -> int:
    """How often the CPU waits for the device in a training over these batches, as the profiler sees it."""
    model = network(kind)
    optimizer = sgd(model)
    torch.compiler.reset()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        train(model, optimizer, data, 1)
    return sum(event.count for event in profiled.key_averages() if event.key in WAITS)


def weights(train: Train, kind: str, data: Sequence[Batch]) -> torch.Tensor:
    model = network(kind)
    torch.compiler.reset()
    train(model, sgd(model), data, 1)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def main() -> None:
    args = arguments(__doc__, rounds=ROUNDS)
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: this benchmark is for one")
    epochs, rounds = (WARM_UP + 2, 1) if args.quick else (EPOCHS, args.rounds)
    rows: dict[str, str] = {}
    goals: dict[str, tuple[float, float]] = {}
    for kind, variants in (("small", VARIANTS), ("middle", VARIANTS), ("fed", FED)):
        data, times, failed = made(kind), {name: [] for name in variants}, set()  # type: ignore[var-annotated]
        for _ in range(rounds):
            for name, train in variants.items():
                if name not in failed:
                    try:
                        times[name].append(seconds(train, kind, data, epochs))
                    except Exception as error:  # one of torch's modes, say, on this machine
                        failed.add(name)
                        goals[f"{kind}: {name}, failures"] = 1.0, 0.0
                        rows[f"{kind}: {name}"] = f"| {kind} | {name} | {type(error).__name__}: {error!s:.60} ||||"
        batches = BATCHES[kind]
        base, many, few = weights(variants["bare loop"], kind, data[:50]), batches // 2, batches // 4
        for name, train in variants.items():
            if name in failed:
                continue
            took = times[name]
            ratio = statistics.median(m / b for b, m in zip(times["bare loop"], took, strict=True))
            syncs = (waits(train, kind, data[:many]) - waits(train, kind, data[:few])) / (many - few)
            difference = (weights(train, kind, data[:50]) - base).abs().max().item()
            rate = f"{batches / statistics.median(took):.0f} ({batches / max(took):.0f} to {batches / min(took):.0f})"
            rows[f"{kind}: {name}"] = (
                f"| {kind} | {name} | {rate} | {1 / ratio:.2f} x | {syncs:.2f} | {difference:.1e} |"
            )
            print(rows[f"{kind}: {name}"], file=sys.stderr, flush=True)  # as it goes, which takes minutes
            if name == "run":
                goals[f"{kind}: run, time over the bare loop's"] = ratio, 1.01
                goals[f"{kind}: run, syncs a batch"] = syncs, 0.0
            if (kind, name) == ("small", "run, compile_step('graph')"):
                goals["small: compile_step('graph'), time over the bare loop's"] = ratio, 0.5
    title = f"On a GPU: {torch.cuda.get_device_name()}, {rounds} rounds"
    head = (
        "| network | training | steps a second (spread) | against the bare loop | syncs a batch | weights differ by |"
    )
    report(title, head, rows, goals, args)


if __name__ == "__main__":
    main()
