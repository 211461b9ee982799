"""A small training with everything that is awkward to resume."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch
import torch._dynamo  # optimizers import it when they are made: here, once, it does not cost each process seconds
import torchmetrics
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
)

from fsm_train import Flag, Phase, State, Supervised, Transition, on
from fsm_train import callbacks as c
from fsm_train.core.callback import Callback
from fsm_train.data import reproducible
from fsm_train.schedules import cosine, warmup
from tests.models import accuracy, digits

EPOCHS, BATCH = 3, 8
DATA = digits(76 + 24)


class Augmented(Dataset[Any]):
    """Each sample is changed by random numbers of Python, NumPy and torch when it is read."""

    def __init__(self, data: Dataset[Any], length: int) -> None:
        self.data = data
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read.append(index)
        image, target = self.data[index]
        return image * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand()) + 0.1 * torch.rand(64), target


class Stream(IterableDataset[Any]):
    """The same samples as a stream, which can only be read from its start."""

    def __init__(self, data: Dataset[Any], length: int, *, augmented: bool = False) -> None:
        self.data = Augmented(data, length) if augmented else data
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(self.length))


class Adapts(nn.Module):
    """Scales by a running mean that is in no state_dict, and only in train mode updates it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.seen.mul_(0.9).add_(0.1 * x.abs().mean().float())
        return x / (1 + self.seen)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(64, 16),
            norm=nn.BatchNorm1d(16),
            adapts=Adapts(),
            relu=nn.ReLU(),
            dropout=nn.Dropout(0.3),
            last=nn.Linear(16, 10),
        )
    )


class Counts:
    """A loss with a state of its own: it counts its calls in training, and the count changes the loss."""

    def __init__(self) -> None:
        self.calls = 0
        self.total = torch.zeros(())

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.requires_grad:
            self.calls += 1
            self.total += output.detach().float().mean()
        return nn.functional.cross_entropy(output, target) * (1 + 1e-3 * (self.calls % 7))

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "total": self.total.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls, self.total = state["calls"], state["total"].clone()


def _loader(kind: str, workers: int) -> Any:
    data = Augmented(Subset(DATA, range(76)), 76)
    settings: dict[str, Any] = {"num_workers": workers}
    match kind:
        case "shuffled":
            return DataLoader(data, BATCH, shuffle=True, **settings)
        case "own generator":
            return DataLoader(data, BATCH, shuffle=True, generator=torch.Generator().manual_seed(4), **settings)
        case "unbatched":
            order = BatchSampler(RandomSampler(data), BATCH, drop_last=False)
            return DataLoader(_Batches(data), batch_size=None, sampler=order, **settings)
        case "weighted":
            weights = WeightedRandomSampler([1.0 + i % 3 for i in range(76)], 70)
            return DataLoader(data, BATCH, sampler=weights, drop_last=True, **settings)
        case "reproducible":
            return reproducible(DataLoader(data, BATCH, shuffle=True, **settings))
        case "stream":
            return DataLoader(Stream(Subset(DATA, range(76)), 76), BATCH, **settings)
        case "augmented stream":
            return DataLoader(Stream(Subset(DATA, range(76)), 76, augmented=True), BATCH, **settings)
        case "list":
            return list(DataLoader(Subset(DATA, range(76)), BATCH))
        case "stateful":
            from torchdata.stateful_dataloader import StatefulDataLoader

            return StatefulDataLoader(data, BATCH, shuffle=True, **settings)
    raise ValueError(kind)


class _Batches(Dataset[Any]):
    def __init__(self, data: Augmented) -> None:
        self.data = data

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        samples = [self.data[i] for i in indices]
        return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


# ------------------------------------------------------------------------------------ trainings


@attrs.frozen
class Spec:
    """Which training.

    Attributes:
        variant: the name of a list of callbacks, and of an optimizer.
        loader: the kind of training loader.
        workers: number of its worker processes.
        epochs: number of epochs.
        saves: folder for a checkpoint at each step; None for no checkpoints.
        slow: seconds that each batch takes longer.
    """

    variant: str = "everything"
    loader: str = "shuffled"
    workers: int = 0
    epochs: int = EPOCHS
    saves: str | None = None
    slow: float = 0.0

    def make(self) -> tuple[Supervised, list[Callback[Any]]]:
        """A new workload and new callbacks, as a script makes them each time that it starts."""
        model = network()
        train = _loader(self.loader, self.workers)
        valid = DataLoader(Augmented(Subset(DATA, range(76, 100)), 24), 12, shuffle=True)
        loss = Counts()
        work = Supervised(
            *(model, _optimizer(self.variant, model), loss, train, valid),
            metrics={"accuracy": accuracy, "theirs": torchmetrics.classification.MulticlassAccuracy(num_classes=10)},
            extra={"loss": loss},
        )
        callbacks = _VARIANTS[self.variant]()
        if self.saves is not None:
            callbacks.append(c.checkpoint(self.saves, every_steps=1, keep=2))
        return work, callbacks


def _optimizer(variant: str, model: nn.Module) -> torch.optim.Optimizer:
    if variant in ("everything", "awkward"):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    groups = [{"params": model.first.parameters(), "lr": 2e-2}, {"params": model.last.parameters()}]
    return torch.optim.AdamW([*groups, {"params": model.norm.parameters()}], lr=1e-2)


def _everything() -> list[Callback[Any]]:
    return [
        c.accumulate(3),
        c.ema(0.8),
        c.ema(0.9, buffers="average", every=2, start=2, warmup=True, validate=False, name="slow"),
        c.mixup(0.4),
        c.clip_grad_norm(1.0),
        c.grad_noise(0.01),
        c.schedule(lr=warmup(4).then(cosine(20)), weight_decay=warmup(6)),
        c.early_stopping("valid_loss", patience=9),
        c.restore_best("valid_loss"),
        c.validate_every(steps=2),
    ]


def _float16() -> list[Callback[Any]]:
    return [
        c.mixed_precision("float16", initial_scale=2.0**26, growth_interval=3),
        c.accumulate(3),
        c.ema(0.8),
        c.reduce_on_plateau("valid_loss", factor=0.5, patience=0),
        c.early_stopping("valid_loss", patience=9),
        c.validate_every(steps=2),
        c.freeze("first.*", until_epoch=1),
    ]


def _scheduler() -> list[Callback[Any]]:
    def cycle(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.05, 0.03, 0.02], total_steps=40)

    def plateau(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)

    return [
        c.torch_scheduler(cycle, name="cycle"),
        c.torch_scheduler(plateau, by="epoch", monitor="valid_loss", name="plateau"),
        c.swa(1),
        c.accumulate(2),
        c.validate_every(steps=3),
    ]


def _awkward() -> list[Callback[Any]]:
    """Accumulation windows that continue after a late skip, gradients that stay after a step, epochs cut short."""

    @on(Phase.STEP_BEGIN)
    def skips_late(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.iteration % 5 == 4 else None

    @on(Phase.STEP_END)
    def keeps_gradients(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_ZERO) if state.iteration % 4 == 2 else None

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_BEGIN)
    def cuts_short(state: State) -> Transition | None:
        if state.phase is Phase.EPOCH_BEGIN:
            return Transition(flags=Flag.STOP_EPOCH) if state.epoch == 1 else None
        return Transition(flags=Flag.SKIP_BATCH) if state.iteration == 6 else None

    float16 = c.mixed_precision("float16", initial_scale=1000.0, growth_interval=2)
    return [float16, c.accumulate(3), c.ema(0.8), skips_late, keeps_gradients, cuts_short, c.validate_every(steps=1)]


_VARIANTS: Mapping[str, Callable[[], list[Callback[Any]]]] = {
    "everything": _everything,
    "float16": _float16,
    "scheduler": _scheduler,
    "awkward": _awkward,
}
