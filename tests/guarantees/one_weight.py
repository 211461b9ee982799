"""A training whose one weight counts its steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsm_train import Phase, State, Supervised, on


def counting(data: Any = None, valid: bool = False, **settings: Any) -> Supervised:
    """A model with one weight, which counts the steps: an epoch is one, unless `data` says something else.

    Args:
        data: batches of a one and a zero.
        valid: whether there is a validation, whose loss is the weight.
        **settings: of the workload.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def loss(output: torch.Tensor, of_validation: torch.Tensor) -> torch.Tensor:
        return torch.where(of_validation > 0, output, -output).mean()

    train = [(torch.ones(1, 1), torch.zeros(1, 1))] if data is None else data
    validation = [(torch.ones(1, 1), torch.ones(1, 1))] if valid else None
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=1.0), loss, train, validation, **settings)


def weight(work: Supervised) -> float:
    return work.model.weight.item()  # type: ignore[no-any-return, operator, union-attr]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def in_epoch(**epochs: Callable[[], object]) -> Any:
    """Does something when epochs begin, which are given as epoch_1=…"""

    @on(Phase.EPOCH_BEGIN)
    def meanwhile(state: State) -> None:
        epochs.get(f"epoch_{state.epoch + 1}", lambda: None)()

    return meanwhile
