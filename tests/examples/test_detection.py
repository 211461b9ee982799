"""`examples/detection.py` beside the loop of torchvision's references."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Supervised
from tests.examples.scripts import example
from tests.killed import killed_and_resumed
from tests.models import same_weights


def fresh(script: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model as the script makes it, after its scenes."""
    torch.manual_seed(0)
    for number in range(60 * 16):
        script.scene(1 + number % 16 % 3)
    model = script.Detector()
    return model, torch.optim.AdamW(model.parameters(), lr=5e-3)


def by_hand(script: Any) -> tuple[list[nn.Module], dict[str, float]]:
    """The model after each epoch, and what the last one measures."""
    model, optimizer = fresh(script)
    models = []
    for _ in range(12):
        model.train()
        measured: dict[str, list[float]] = {"train_loss": []}
        for images, targets in script.train:
            losses = model(images, targets)
            loss = sum(losses.values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for name, value in {"loss": loss, **losses}.items():
                measured.setdefault(f"train_{name}", []).append(value.item())
        models.append(copy.deepcopy(model))
    model.eval()
    hits = there = 0
    for images, targets in script.valid:
        with torch.no_grad():
            found, total = script.recall(model(images, targets), targets)
        hits, there = hits + int(found), there + total
    return models, {name: sum(losses) / len(losses) for name, losses in measured.items()} | {"recall": hits / there}


def test_detection_is_the_plain_loop(tmp_path: Path) -> None:
    """Weights of each epoch, parts of the loss and boxes of eval mode, also over a kill in the second epoch."""
    script = example("detection.py")

    def workload() -> Supervised:
        settings = {"forward": lambda model, images, targets: model(images, targets), "samples": lambda images, _: 16}
        return Supervised(
            *fresh(script), lambda parts, _: {"loss": sum(parts.values()), **parts}, script.train, **settings
        )

    models, measured = by_hand(script)
    _, resumed = killed_and_resumed(workload, tmp_path, 70)

    recall = measured.pop("recall")
    assert same_weights(script.work.model, models[-1])
    assert same_weights(resumed.model, models[1])
    assert {name: script.final.metrics[name] for name in measured} == pytest.approx(measured, rel=1e-6)
    assert script.final.metrics["valid_recall"] == recall > 0.6
