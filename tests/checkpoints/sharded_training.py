"""A model that ranks share out, trained with checkpoints; what each has to give back, gathered by the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard  # once, and not in each process
from torch.utils.data import DataLoader, Subset

from fsm_train import Callback, Phase, State, Supervised, on, run, start
from fsm_train.callbacks import checkpoint, ema
from fsm_train.supervised.shares import whole
from tests.forked import forked
from tests.models import diabetes


class Net(nn.Module):
    """With a shared weight, buffers, one row that fewer ranks have than there are, and a layer in half precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Linear(10, 10)
        self.second.weight = self.first.weight
        self.head = nn.Linear(10, 1)
        self.scale = nn.Parameter(torch.tensor([1.0]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.second(self.norm(self.first(inputs)).relu())) * self.scale
        return output


def sharded() -> Net:
    """The model, of which each rank has its share."""
    model = Net()
    fully_shard(model.head)
    fully_shard(model)
    return model


def workload(model: nn.Module, *data: Any, **settings: Any) -> Supervised:
    """As each rank has it."""
    return Supervised(model, torch.optim.AdamW(model.parameters(), lr=0.05), nn.MSELoss(), *data, **settings)


def data_of(rank: int, ranks: int) -> list[DataLoader[Any]]:
    """Batches of this rank, to train with and to validate."""
    return [DataLoader(Subset(diabetes(), range(begin + rank, end, ranks)), 5) for begin, end in ((0, 40), (100, 120))]


def train(rank: int, ranks: int, folder: Path, *callbacks: Callback[Any]) -> list[dict[str, torch.Tensor]]:
    """Three epochs on one of the ranks; the measured weights after each, all shares together."""
    model = sharded()
    work = workload(model, *data_of(rank, ranks), parallel="fsdp")
    measured = []

    @on(Phase.EPOCH_END)
    def gather(state: State) -> None:
        work.reshard()
        weights = {name: whole(value.detach()).clone() for name, value in model.state_dict().items()}
        for average in work.carried_over.averages.values():
            means = {name.removeprefix("model."): mean for name, mean in average.parameters.items()}
            means["second.weight"] = means["first.weight"]
            weights |= {name: whole(mean).clone() for name, mean in means.items()}
            weights |= {name.removeprefix("model."): each.clone() for name, each in average.buffers.items()}
        measured.append(weights)

    keep = checkpoint(folder, monitor="valid_loss", keep=1, last=3)
    run(start(work, epochs=3), [*callbacks, keep, gather], log=logs_of(folder) / "run-{rank}.jsonl")
    return measured


def logs_of(folder: Path) -> Path:
    """Where the ranks have their logs, one each."""
    return folder.with_name(f"{folder.name}, logs")


@attrs.frozen
class Trained:
    """What ranks trained.

    Attributes:
        folder: of the checkpoints.
        measured: after each epoch, the weights that the validation was measured with.
    """

    folder: Path
    measured: list[dict[str, torch.Tensor]]


def trained_on(ranks: int, folder: Path, *, averaged: tuple[bool, ...] = (False,)) -> list[Trained]:
    """Train on so many ranks, once for each of these: with an average of the weights, or without."""
    folders = [folder / f"{ranks} ranks{' with an average' * each}" for each in averaged]

    def each_way(rank: int) -> list[Any]:
        ways = zip(folders, averaged, strict=True)
        return [train(rank, ranks, path, *([ema(0.5)] if each else [])) for path, each in ways]

    ends = forked(ranks, folder / f"group of {ranks}", each_way)
    assert all(isinstance(end, list) for end in ends), ends
    return [*map(Trained, folders, ends[0])]
