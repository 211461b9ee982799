"""Ten trainings on real data that are spoilt on purpose, each with its illness, and ten healthy ones.

Each function trains and writes a log to a path. `ILL` says which illness the diagnosis has to find.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import EventLog, Phase, State, Supervised, on, run, start
from fsm_train.callbacks import (
    accumulate,
    clip_grad_norm,
    diagnosing,
    early_stopping,
    mixed_precision,
    record,
    schedule,
    skip_nonfinite,
)
from fsm_train.schedules import cosine, exponential, warmup

Tensors = tuple[torch.Tensor, torch.Tensor]
Training = Callable[[Path], State]


@functools.cache
def _scaled(load: Callable[..., Any]) -> Tensors:
    """Inputs with mean 0 and deviation 1, and targets; shuffled once."""
    inputs, targets = (torch.tensor(array) for array in load(return_X_y=True))
    inputs = (inputs - inputs.mean(dim=0)) / (inputs.std(dim=0) + 1e-6)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return inputs[order].float(), targets[order]


def digits() -> Tensors:
    return _scaled(load_digits)


def cancer() -> Tensors:
    return _scaled(load_breast_cancer)


def diabetes() -> Tensors:
    inputs, targets = _scaled(load_diabetes)
    return inputs, ((targets - targets.mean()) / targets.std()).float()[:, None]


def net(inputs: int, outputs: int, width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def deep(activation: Callable[[], nn.Module], layers: int, scale: float | None = None) -> nn.Sequential:
    """Layers of 32 for the digits; with a scale their weights are normal, with this gain over 1 / sqrt(fan in)."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(64, 32), activation()]
    for _ in range(layers):
        parts += [nn.Linear(32, 32), activation()]
    model = nn.Sequential(*parts, nn.Linear(32, 10))
    if scale is not None:
        for parameter in (part.weight for part in model if isinstance(part, nn.Linear)):
            nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[1]))
    return model


def train(
    path: Path,
    model: nn.Module,
    data: Tensors,
    valid: Tensors,
    *,
    lr: float = 0.05,
    epochs: int = 12,
    callbacks: Iterable[Any] = (),
    loss_fn: Any = None,
    adam: bool = False,
    shuffle: bool = True,
    batch_size: int = 32,
    facts: Iterable[str] = (),
    **settings: Any,
) -> State:
    """Train, and log it; `diagnosing` listens."""
    optimizer = torch.optim.Adam(model.parameters(), lr) if adam else torch.optim.SGD(model.parameters(), lr, 0.9)
    loss_fn = loss_fn or (nn.MSELoss() if data[1].is_floating_point() else nn.CrossEntropyLoss())
    loader = DataLoader(TensorDataset(*data), batch_size, shuffle=shuffle)
    work = Supervised(model, optimizer, loss_fn, loader, DataLoader(TensorDataset(*valid), 512), **settings)
    log = EventLog(path, facts=facts)
    return run(start(work, epochs=epochs, seed=0), [*callbacks, diagnosing()], log=log)


def split(data: Tensors, samples: int = 400, held_out: int = 150) -> tuple[Tensors, Tensors]:
    """Training and validation data."""
    inputs, targets = data
    return (inputs[:samples], targets[:samples]), (inputs[-held_out:], targets[-held_out:])


# --------------------------------------------------------------------------------------- spoilt


def rate_too_high(path: Path) -> State:
    """The rate is a hundred times what it should be: the loss jumps, and then stays at that of guessing."""
    return train(path, deep(nn.ReLU, layers=3), *split(digits()), lr=2.0, callbacks=[record("loss")])


def rate_ends_too_soon(path: Path) -> State:
    """A schedule that is meant in epochs counts steps, and is over after one of twelve epochs."""
    return train(path, net(64, 10), *split(digits()), callbacks=[schedule(lr=cosine(12))])


def labels_of_validation_shuffled(path: Path) -> State:
    """The targets of the validation do not belong to its inputs."""
    ours, (inputs, targets) = split(digits())
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    return train(path, net(64, 10), ours, (inputs, targets[order]))


def sorted_data_unshuffled(path: Path) -> State:
    """The training data are sorted by class, and not shuffled: each class is learned over the others."""
    (inputs, targets), valid = split(digits(), samples=800)
    order = targets.argsort()
    return train(path, net(64, 10), (inputs[order], targets[order]), valid, shuffle=False)


def nan_in_the_data(path: Path) -> State:
    """One measurement of one patient is missing, as NaN; such batches are left out."""
    (inputs, targets), valid = split(cancer())
    inputs = inputs.clone()
    inputs[77, 3] = math.nan
    return train(path, net(30, 2), (inputs, targets), valid, callbacks=[skip_nonfinite()], epochs=8)


def gradients_exploding(path: Path) -> State:
    """A deep network whose weights are too large, at a rate at which it does not stay where it was."""
    model = deep(nn.ReLU, layers=8, scale=2.0)
    return train(path, model, *split(digits()), lr=0.1, callbacks=[record("loss", "grad_norm")])


def gradients_vanishing(path: Path) -> State:
    """A deep network of sigmoids: the first layer learns nothing."""
    model = deep(nn.Sigmoid, layers=8)
    first, last = model[0], model[-1]
    sensors = {
        "grad_norm_first": lambda work: first.weight.grad.norm(),
        "grad_norm_last": lambda work: last.weight.grad.norm(),
    }

    @on(Phase.STEP_BEGIN, needs=sensors)
    def record_layers(state: State) -> None:
        """Only for the log."""

    return train(path, model, *split(digits()), callbacks=[record_layers], sensors=sensors)


def overfitting_small_data(path: Path) -> State:
    """Forty patients, ten times as many weights as are needed, and no regularisation."""
    ours, valid = split(diabetes(), samples=40)
    return train(path, net(10, 1, width=200), ours, valid, epochs=60, lr=0.01)


def steps_held_by_the_scaler(path: Path) -> State:
    """Float16 with losses that are scaled up by the user too: every other step overflows."""
    ours, valid = split(digits())

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.calls = nn.CrossEntropyLoss(), 0

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.own(output.float(), target) * (1e12 if self.calls % 3 == 0 else 1.0)

    return train(path, net(64, 10), ours, valid, lr=0.01, loss_fn=Scaled(), callbacks=[mixed_precision("float16")])


def patience_too_small(path: Path) -> State:
    """A validation of twenty digits, and no patience."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), net(64, 10))
    data = split(digits(), samples=200, held_out=20)
    return train(path, model, *data, lr=0.003, batch_size=8, epochs=60, callbacks=[early_stopping(patience=1)])


ILL: Mapping[str, tuple[Training, str]] = {
    "rate too high": (rate_too_high, "loss does not fall"),
    "rate ends too soon": (rate_ends_too_soon, "rate at zero"),
    "labels of the validation shuffled": (labels_of_validation_shuffled, "validation worse from the start"),
    "sorted data, not shuffled": (sorted_data_unshuffled, "loss does not fall"),
    "NaN in the data": (nan_in_the_data, "not finite"),
    "gradients exploding": (gradients_exploding, "gradients explode"),
    "gradients vanishing": (gradients_vanishing, "gradients vanish"),
    "overfitting small data": (overfitting_small_data, "overfitting"),
    "steps held by the scaler": (steps_held_by_the_scaler, "steps held back"),
    "patience too small": (patience_too_small, "stopped too early"),
}
"""By name, a spoilt training and the illness that the diagnosis has to find."""

# --------------------------------------------------------------------------------------- healthy


def plain_digits(path: Path) -> State:
    return train(path, net(64, 10), *split(digits(), samples=800))


def digits_with_all_facts(path: Path) -> State:
    model = deep(nn.ReLU, layers=2)
    first, last = model[0], model[-1]
    sensors = {
        "grad_norm_first": lambda work: first.weight.grad.norm(),
        "grad_norm_last": lambda work: last.weight.grad.norm(),
    }

    @on(Phase.STEP_BEGIN, needs=sensors)
    def record_layers(state: State) -> None:
        """Only for the log."""

    callbacks = [record("loss", "grad_norm"), record_layers]
    return train(path, model, *split(digits()), callbacks=callbacks, sensors=sensors, facts=["elapsed"])


def digits_on_schedule(path: Path) -> State:
    callbacks = [schedule(lr=warmup(26).then(cosine(130))), clip_grad_norm(1.0), record("loss")]
    return train(path, net(64, 10), *split(digits()), lr=0.2, callbacks=callbacks)


def digits_with_adam(path: Path) -> State:
    return train(path, net(64, 10), *split(digits()), adam=True, lr=0.01, callbacks=[record("loss", "grad_norm")])


def digits_in_half_precision(path: Path) -> State:
    """The scaler looks for its scale first, and holds a few steps back."""
    return train(path, net(64, 10), *split(digits()), callbacks=[mixed_precision("float16")], epochs=8)


def digits_stopped(path: Path) -> State:
    callbacks = [early_stopping(patience=5)]
    return train(path, net(64, 10), *split(digits(), samples=800), callbacks=callbacks, epochs=60, lr=0.1)


def plain_cancer(path: Path) -> State:
    return train(path, net(30, 2), *split(cancer()), lr=0.01, epochs=15)


def cancer_accumulated(path: Path) -> State:
    return train(path, net(30, 2), *split(cancer()), lr=0.02, callbacks=[accumulate(4), record("loss")])


def linear_diabetes(path: Path) -> State:
    """A linear model that has learned all it can after a few epochs, and stays there."""
    torch.manual_seed(0)
    return train(path, nn.Linear(10, 1), *split(diabetes(), samples=280), lr=0.005, callbacks=[record("loss")])


def decaying_diabetes(path: Path) -> State:
    callbacks = [schedule(by="epoch", lr=exponential(0.8)), record("loss", "grad_norm")]
    return train(path, net(10, 1, width=8), *split(diabetes(), samples=280), lr=0.01, epochs=20, callbacks=callbacks)


HEALTHY: Mapping[str, Training] = {
    "digits": plain_digits,
    "digits, with all facts": digits_with_all_facts,
    "digits, warmup and cosine": digits_on_schedule,
    "digits, Adam": digits_with_adam,
    "digits, float16": digits_in_half_precision,
    "digits, stopped": digits_stopped,
    "cancer": plain_cancer,
    "cancer, accumulated": cancer_accumulated,
    "diabetes, linear": linear_diabetes,
    "diabetes, decaying rate": decaying_diabetes,
}
"""Trainings in which nothing is to be found, by name."""
