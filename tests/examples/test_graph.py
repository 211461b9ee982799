"""`examples/graph.py` beside the loop of torch_geometric's examples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Supervised
from tests.examples.scripts import example
from tests.killed import killed_and_resumed
from tests.models import same_weights


def fresh(script: Any) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = script.GraphNetwork()
    loader = DataLoader(script.data[:1437], batch_size=32, shuffle=True, collate_fn=script.collate)
    return model, torch.optim.Adam(model.parameters(), lr=3e-3), loader


def by_hand(script: Any) -> tuple[list[nn.Module], float, float]:
    """The model after each epoch, and the loss on training data and the accuracy on others of the last."""
    model, optimizer, loader = fresh(script)
    models = []
    torch.manual_seed(0)
    for _ in range(12):
        model.train()
        total = 0.0
        for batch in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch), batch.labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch.labels)
        models.append(copy.deepcopy(model))
    model.eval()
    others = script.collate(script.data[1437:])
    with torch.no_grad():
        right = int((model(others).argmax(dim=1) == others.labels).sum())
    return models, total / 1437, right / 360


def test_graph_is_the_plain_loop(tmp_path: Path) -> None:
    """Weights of each epoch, with means over the graphs of unequal batches; also over a kill in the second epoch."""
    script = example("graph.py")

    def workload() -> Supervised:
        model, optimizer, loader = fresh(script)
        settings = {"split": lambda graphs: (graphs, graphs.labels), "samples": lambda graphs, labels: len(labels)}
        return Supervised(model, optimizer, nn.CrossEntropyLoss(), loader, **settings)

    models, loss, accuracy = by_hand(script)
    _, resumed = killed_and_resumed(workload, tmp_path, 70)

    assert same_weights(script.work.model, models[-1])
    assert same_weights(resumed.model, models[1])
    assert script.final.metrics["train_loss"] == pytest.approx(loss, rel=1e-6)
    assert script.final.metrics["valid_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    assert accuracy > 0.7
