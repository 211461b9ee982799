# python -m tests.benchmarks.gpu: the bare loop, `run`, and compiled steps on a GPU: steps a second, and syncs.
from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fsm_train import Callback, Supervised, run, start
from fsm_train.callbacks import compile_step, record

Batch = tuple[torch.Tensor, torch.Tensor]
BATCHES = 200


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "small":
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).cuda()
    layers = [nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()) for _ in range(8)]
    return nn.Sequential(*layers, nn.Linear(2048, 10)).cuda()


def batches(kind: str) -> list[Batch]:
    inputs, samples = (64, 64) if kind == "small" else (2048, 2048)
    device = torch.device("cuda")
    one = [
        (torch.randn(samples, inputs, device=device), torch.randint(10, (samples,), device=device)) for _ in range(8)
    ]
    return [one[i % 8] for i in range(BATCHES)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Batch], *, read: bool = False) -> None:
    loss_fn = nn.CrossEntropyLoss()
    model.train()
    for inputs, target in data:
        loss = loss_fn(model(inputs), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if read:
            loss.item()


def with_run(callbacks: Callable[[], list[Callback[Any]]]) -> Callable[[nn.Module, Any, Sequence[Batch]], None]:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Batch]) -> None:
        run(start(Supervised(model, optimizer, nn.CrossEntropyLoss(), data), epochs=1), callbacks())

    return train


VARIANTS: dict[str, Callable[..., None]] = {
    "bare loop": bare,
    "run": with_run(list),
    "run, compile_step('graph')": with_run(lambda: [compile_step("graph")]),
    "bare loop that reads the loss": lambda *a: bare(*a, read=True),
    "run, with a callback that reads the loss": with_run(lambda: [record("loss")]),
    "run, which reads every 50th loss": with_run(lambda: [record("loss", every=50)]),
}


def seconds(train: Callable[..., None], kind: str, data: Sequence[Batch]) -> float:
    model = network(kind)
    optimizer = sgd(model)
    train(model, optimizer, data[:20])
    torch.cuda.synchronize()
    began = time.perf_counter()
    train(model, optimizer, data)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def syncs(train: Callable[..., None], kind: str, data: Sequence[Batch]) -> int:
    """How often the CPU waits for the device in one epoch, as torch itself warns of it."""
    model = network(kind)
    optimizer = sgd(model)
    train(model, optimizer, data[:20])
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, data)
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def weights(train: Callable[..., None], kind: str, data: Sequence[Batch]) -> torch.Tensor:
    model = network(kind)
    train(model, sgd(model), data[:50])
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {BATCHES} steps a time, medians of 11\n")
    print("| network | training | steps a second | against the bare loop | syncs | largest difference of weights |")
    print("|---|---|---|---|---|---|")
    for kind in ("small", "middle"):
        data = batches(kind)
        times: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(11):  # in turns, so that a change of clock falls on all
            for name, train in VARIANTS.items():
                times[name].append(seconds(train, kind, data))
        base = weights(bare, kind, data)
        for name, train in VARIANTS.items():
            ratio = statistics.median(b / m for b, m in zip(times["bare loop"], times[name], strict=True))
            difference = (weights(train, kind, data) - base).abs().max().item()
            rate = BATCHES / statistics.median(times[name])
            print(f"| {kind} | {name} | {rate:.0f} | {ratio:.2f} x | {syncs(train, kind, data)} | {difference:.1e} |")


if __name__ == "__main__":
    main()
