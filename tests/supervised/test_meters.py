"""Means and metrics: exact over many batches, and saved in the middle of an epoch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn

from fsm_train import WorkloadError
from fsm_train.supervised.means import Mean
from fsm_train.supervised.meters import Meters
from fsm_train.supervised.modules import load_module, state_of_module
from tests.models import accuracy

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, Mean.BLOCK - 1, Mean.BLOCK, Mean.BLOCK + 1, 2 * Mean.BLOCK, 2500])
def test_mean_over_any_number_of_batches_is_exact(count: int) -> None:
    """Whether blocks are full or not, weighted, and correctly rounded."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    weights = [i % 7 + 1 for i in range(count)]
    mean = Mean()
    for value, weight in zip(values, weights, strict=True):
        mean.add(value, weight)

    expected = math.fsum(v * w for v, w in zip(values.tolist(), weights, strict=True)) / sum(weights)
    assert mean.result() == expected


def test_memory_of_a_mean_grows_by_numbers_alone() -> None:
    """Full blocks are one tensor each, in which no batch's own tensor is kept."""
    mean = Mean()
    for _ in range(3 * Mean.BLOCK + 5):
        mean.add(torch.zeros(()), 1)

    latest, blocks, weights = mean.state()
    assert (len(latest), [len(block) for block in blocks], len(weights)) == (5, [Mean.BLOCK] * 3, 3 * Mean.BLOCK + 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_mean_of_what_is_not_finite_is_not(value: float) -> None:
    """One such loss is to be seen."""
    mean = Mean()
    for each in (1.0, value):
        mean.add(torch.tensor(each), 1)

    result = mean.result()
    assert result is not None
    assert math.isnan(result) if math.isnan(value) else result == value


def test_mean_of_nothing_is_none() -> None:
    """And so after a reset."""
    mean = Mean()
    mean.add(torch.ones(()), 1)
    mean.reset()

    assert mean.result() is None


class Spread:
    """A metric with nothing but the three methods."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.seen.append(output.mean().item())

    def compute(self) -> float:
        return max(self.seen) - min(self.seen)

    def reset(self) -> None:
        self.seen.clear()


class Counting(Spread):
    """One that can be saved, and is none of torchmetrics'."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def _add(meters: Meters, *values: float) -> None:
    for value in values:
        meters.add(torch.tensor(value), torch.full((4, 2), value), torch.zeros(4, dtype=torch.int64), 4)


def test_meters_go_on_from_their_state() -> None:
    """Of each kind of metric, with and without a state_dict."""
    metrics: dict[str, Any] = {
        "accuracy": accuracy,
        "number": lambda output, target: 3,
        "theirs": torchmetrics.classification.MulticlassAccuracy(num_classes=2, average="micro"),
        "counting": Counting(),
        "spread": Spread(),
    }
    undisturbed, before, after = (Meters("train", metrics, CPU) for _ in range(3))
    _add(undisturbed, 1.0, 2.0, 5.0)
    _add(before, 1.0, 2.0)

    state, unsaved = before.state()
    after.load_state(state)
    _add(after, 5.0)

    expected = undisturbed.results()
    assert unsaved == []
    assert after.results() == expected
    assert expected["train_counting"] == 4.0
    assert expected["train_number"] == 3.0


def test_meters_that_measured_nothing_say_nothing() -> None:
    """Neither loss nor metrics."""
    assert Meters("train", {"accuracy": accuracy, "counting": Counting()}, CPU).results() == {}


def test_metric_that_was_not_saved_begins_anew() -> None:
    """One that was added to the code since."""
    before, after = Meters("train", {}, CPU), Meters("train", {"counting": Counting()}, CPU)
    _add(before, 1.0)

    after.load_state(before.state()[0])

    assert after.results() == {"train_loss": 1.0}


# ------------------------------------------------------------------------------------------- modules


class Buffered(nn.Module):
    def __init__(self, size: int = 3, dtype: torch.dtype = torch.float32, name: str = "cache") -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=dtype)
        self.register_buffer(name, torch.arange(size), persistent=False)


def test_buffers_that_the_state_dict_leaves_out_come_back() -> None:
    """And the mode of each part."""
    module, other = Buffered(), Buffered()
    module.layer.eval()
    module.cache += 7

    load_module(other, state_of_module(module))

    assert other.cache.tolist() == [7, 8, 9]
    assert (other.training, other.layer.training) == (True, False)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (Buffered(dtype=torch.float64), "layer.weight is of type torch.float64 and was saved as torch.float32"),
        (Buffered(size=4), r"the buffer cache has the shape \(4,\), and was \(3,\) when saved"),
        (Buffered(name="table"), r"the buffer table has the shape \(3,\), and was not there when saved"),
    ],
)
def test_module_of_another_kind_is_refused(other: nn.Module, sentence: str) -> None:
    """Torch would convert, or leave alone, without a word."""
    with pytest.raises(WorkloadError, match=sentence):
        load_module(other, state_of_module(Buffered()))
