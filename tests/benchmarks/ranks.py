# python -m tests.benchmarks.ranks: what `Supervised(parallel="ddp")` adds to a step of DDP by hand.
"""Both loops train in the same two processes, twenty steps in turn, on gloo.

Of the loop by hand there are two, with a wrapper each: what they differ by is what this machine cannot tell apart.
"""

from __future__ import annotations

import importlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Callback, Phase, State, Supervised, on, run, start
from fsm_train.callbacks import early_stopping, record
from tests.benchmarks.interleaved import BLOCK, arguments, report

RANKS = 2
BATCH = 32


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def data(batches: int) -> DataLoader[Any]:
    """This rank's own."""
    own = torch.Generator().manual_seed(dist.get_rank())
    samples = batches * BATCH
    inputs, target = torch.randn(samples, 64, generator=own), torch.randint(10, (samples,), generator=own)
    return DataLoader(TensorDataset(inputs, target), batch_size=BATCH)


class ByHand:
    """The loop of torch's tutorial, a block of steps at a time."""

    def __init__(self, batches: int) -> None:
        self.model = DistributedDataParallel(network())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.loss_fn = nn.CrossEntropyLoss()
        self.batches = self._endless(data(batches))

    def _endless(self, loader: DataLoader[Any]) -> Iterator[Any]:
        while True:
            yield from loader

    def block(self) -> None:
        for _ in range(BLOCK):
            inputs, target = next(self.batches)
            self.loss_fn(self.model(inputs), target).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


class Turns:
    """Times blocks of three loops in turn: by hand, ours, by hand again. Ours is the training that calls this."""

    def __init__(self, batches: int) -> None:
        self.one, self.other = ByHand(batches), ByHand(batches)
        self.times: list[tuple[float, float, float]] = []
        self._began = time.perf_counter()

    def callback(self) -> Callback[Any]:
        @on(Phase.BATCH_END, every=BLOCK, name="turns")
        def turns(state: State) -> None:
            ours = time.perf_counter() - self._began
            self.times.append((_timed(self.one.block), ours, _timed(self.other.block)))
            self._began = time.perf_counter()

        return turns


def _timed(do: Callable[[], None]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


KINDS: dict[str, list[Callback[Any]]] = {
    "no callbacks": [],
    "early stopping": [early_stopping("train_loss", patience=10**6)],
    "the loss of each batch": [record("loss")],
}


def ratios(rank: int, store: Path, batches: int, epochs: int, sends: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    rows = {}
    for name, callbacks in KINDS.items():
        turns = Turns(batches)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        work = Supervised(model, optimizer, nn.CrossEntropyLoss(), data(batches), parallel="ddp")
        run(start(work, epochs=epochs), [*callbacks, turns.callback()])
        rows[name] = turns.times[len(turns.times) // 10 + 1 :]
    sends.send(rows)
    dist.barrier()


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the range that holds it with 95%, of values that are independent."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    low, high = int(len(values) / 2 - half), int(len(values) / 2 + half)
    return statistics.median(ordered), ordered[max(low, 0)], ordered[min(high, len(ordered) - 1)]


def row(name: str, times: list[tuple[float, float, float]]) -> str:
    step = statistics.median(one for one, _, _ in times) / BLOCK * 1e6
    of_ours = interval([2 * ours / (one + other) for one, ours, other in times])
    of_twins = interval([other / one for one, _, other in times])
    shown = " | ".join(f"{median:.3f} ({low:.3f} to {high:.3f})" for median, low, high in (of_ours, of_twins))
    return f"| {name} | {step:.0f} | {shown} |"


def main() -> None:
    args = arguments(__doc__, batches=200, epochs=20)
    if args.quick:
        args.batches, args.epochs = 40, 4
    importlib.import_module("torch._dynamo")  # which torch's wrapper imports: once, before the processes are forked
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        receives, sends = context.Pipe(duplex=False)
        given = Path(folder) / "store", args.batches, args.epochs, sends
        processes = [context.Process(target=ratios, args=(rank, *given)) for rank in range(RANKS)]
        for process in processes:
            process.start()
        sends.close()  # so that the end of a process that fails is seen here
        of_each = [receives.recv() for _ in processes]
        for process in processes:
            process.join()
    head = "| training | step by hand, us | ours over by hand (95%) | by hand over by hand (95%) |"
    report("Two processes on gloo", head, {name: row(name, of_each[0][name]) for name in KINDS}, {}, args)


if __name__ == "__main__":
    main()
