"""Training metrics at a validation in the middle of an epoch: those of the batches so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Phase, State, Supervised, evaluate, on, replay, run, start
from fsm_train.callbacks import validate_every
from fsm_train.eventlog import read_log
from tests.models import accuracy, digits, network, same_weights, sgd

BATCHES = list(zip(*(tensor.split(32) for tensor in digits(160).tensors), strict=True))


class Odd:
    """Remembers that it computed, draws, and cannot compute of fewer than three batches."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.batches = self.computed = 0

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.batches += 1

    def compute(self) -> float:
        if self.batches < 3:
            raise ArithmeticError("too few")
        self.computed += 1
        torch.rand(())
        return float(self.computed)


def _train(
    metrics: dict[str, Any], *, between: bool, **settings: Any
) -> tuple[Supervised, State, list[dict[str, float]]]:
    seen: list[dict[str, float]] = []

    @on(Phase.VALID_END)
    def sees(state: State) -> None:
        seen.append(dict(state.metrics))

    model = network()
    work = Supervised(model, sgd(model), nn.CrossEntropyLoss(), BATCHES, BATCHES[:3], metrics=metrics)
    callbacks = [validate_every(steps=2), sees] if between else [sees]
    return work, run(start(work, epochs=2, seed=0), callbacks, **settings), seen


def test_they_are_the_means_over_the_batches_so_far() -> None:
    """After two and four batches of the first epoch, as a plain loop has them."""
    model, loss_fn = network(), nn.CrossEntropyLoss()
    optimizer = sgd(model)
    torch.manual_seed(0)
    expected: list[float] = []
    for _ in range(2):
        losses: list[float] = []
        for inputs, target in BATCHES:
            loss = loss_fn(model(inputs), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) in (2, 4):
                expected.append(sum(losses) / len(losses))

    work, _, seen = _train({"accuracy": accuracy}, between=True)

    in_the_middle = [seen[0], seen[1]]
    assert [metrics["train_loss"] for metrics in in_the_middle] == pytest.approx(expected[:2], rel=1e-6)
    assert all(metrics.keys() >= {"train_accuracy", "valid_accuracy"} for metrics in in_the_middle)
    assert same_weights(work.model, model)
    assert evaluate(work).keys() == {"valid_loss", "valid_accuracy"}


def test_looking_changes_nothing() -> None:
    """Epochs end with the same metrics, weights and draws as without looking, whatever a metric remembers."""
    with_it, final, seen = _train({"odd": Odd()}, between=True)
    without, expected, _ = _train({"odd": Odd()}, between=False)

    assert [metrics["train_loss"] for metrics in final.history] == [m["train_loss"] for m in expected.history]
    assert [metrics["train_odd"] for metrics in final.history] == [1.0, 1.0]
    assert ["train_odd" in metrics for metrics in seen[:2]] == [False, True]
    assert same_weights(with_it.model, without.model)


def test_log_with_them_replays(tmp_path: Path) -> None:
    """They are in the log, and the replay finds no divergence."""
    log = tmp_path / "run.jsonl"
    model = network()
    work = Supervised(model, sgd(model), nn.CrossEntropyLoss(), BATCHES, BATCHES[:3], metrics={"accuracy": accuracy})
    run(start(work, epochs=2, seed=0), [validate_every(steps=2)], log=log)

    at_the_first = next(line for line in read_log(log) if getattr(line, "phase", None) is Phase.VALID_END)
    assert at_the_first.metrics.keys() == {"train_loss", "train_accuracy", "valid_loss", "valid_accuracy"}
    assert replay(log).divergence is None
