"""Two tasks with one body, weighed by uncertainties that are learned; each loss is measured."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start
from tests.models import digits

TRICK = ""


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.kind, self.ink = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(32, 1)

    def forward(self, images):
        hidden = self.body(images).relu()
        return self.kind(hidden), self.ink(hidden)[:, 0]


class Weighed(nn.Module):
    """By homoscedastic uncertainty: Kendall, Gal and Cipolla, 2018."""

    def __init__(self):
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(self, output, target):
        kind = nn.functional.cross_entropy(output[0], target[0])
        ink = nn.functional.mse_loss(output[1], target[1])
        loss = (torch.stack([kind, ink]) * (-self.log_variances).exp() + self.log_variances).sum()
        return {"loss": loss, "kind": kind, "ink": ink}


def setup():
    torch.manual_seed(0)
    images, labels = digits().tensors
    model, criterion = TwoHeads(), Weighed()
    train = DataLoader(TensorDataset(images, labels, images.mean(dim=1)), batch_size=32, shuffle=True)
    return model, criterion, torch.optim.Adam([*model.parameters(), *criterion.parameters()], lr=1e-2), train


def plain():
    model, criterion, optimizer, train = setup()
    for _ in range(3):
        sums = {"kind": 0.0, "ink": 0.0}
        for images, *target in train:
            losses = criterion(model(images), target)
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            for name in sums:
                sums[name] += losses[name].item()
        means = {name: total / len(train) for name, total in sums.items()}
    return model, criterion, means["kind"], means["ink"]


def machine():
    model, criterion, optimizer, train = setup()
    work = Supervised(model, optimizer, criterion, train, split=lambda batch: (batch[0], batch[1:]))
    final = run(start(work, epochs=3))
    return model, criterion, final.metrics["train_kind"], final.metrics["train_ink"]
