"""A graph network on one whole graph: one batch an epoch, a loss on the nodes with labels, early stopping by others."""

import copy

import torch
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import early_stopping, restore_best
from tests.models import digits

TRICK = ""


class GraphNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(64, 16), nn.Linear(16, 10), nn.Dropout(0.5)

    def forward(self, nodes, edges):
        return edges @ self.second(self.dropout((edges @ self.first(nodes)).relu()))


def setup():
    """Digits, each joined with its five nearest."""
    torch.manual_seed(0)
    nodes, labels = digits(200).tensors
    nearest = torch.cdist(nodes, nodes).topk(6, largest=False).indices
    edges = torch.zeros(200, 200).scatter_(1, nearest, 1 / 6)
    train, valid = torch.arange(200) < 100, torch.arange(200) >= 150
    model = GraphNetwork()
    return model, torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=5e-4), nodes, edges, labels, train, valid


def plain():
    model, optimizer, nodes, edges, labels, train, valid = setup()
    best, best_weights, waited = float("inf"), None, 0
    for _ in range(40):
        model.train()
        loss = nn.functional.cross_entropy(model(nodes, edges)[train], labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(nodes, edges)[valid], labels[valid]).item()
        if loss < best:
            best, best_weights, waited = loss, copy.deepcopy(model.state_dict()), 0
        elif (waited := waited + 1) >= 3:
            break
    model.load_state_dict(best_weights)
    return model, best


def machine():
    model, optimizer, nodes, edges, labels, train, valid = setup()
    on = lambda output, target: nn.functional.cross_entropy(output[target[0]], target[1][target[0]])
    whole = lambda mask: [((nodes, edges), (mask, labels))]
    final = run(
        start(Supervised(model, optimizer, on, whole(train), whole(valid)), epochs=40),
        [early_stopping("valid_loss", patience=3), restore_best("valid_loss")],
    )
    return model, min(metrics["valid_loss"] for metrics in final.history)
