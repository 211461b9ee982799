"""DARTS, first order: weights learn from one half of the data, and how operations are mixed from the other."""

import torch
from torch import nn
from torch.utils.data import random_split

from fsm_train import Alternating, Player, run, start, together
from fsm_train.callbacks import clip_grad_norm
from tests.models import digits, shuffled

TRICK = ""


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.alphas = nn.Parameter(torch.zeros(3))
        self.operations = nn.ModuleList([nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.Identity()])
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        shares = self.alphas.softmax(dim=0)
        return self.head(sum(share * use(images) for share, use in zip(shares, self.operations, strict=True)))


def setup():
    torch.manual_seed(0)
    model = Mixed()
    weights = [*model.operations.parameters(), *model.head.parameters()]
    optimizers = torch.optim.SGD(weights, lr=0.05, momentum=0.9), torch.optim.Adam([model.alphas], lr=3e-2)
    halves = [shuffled(half, 16) for half in random_split(digits(), [160, 160])]
    return model, *optimizers, *halves


def plain():
    model, optimizer, of_mixture, train, search = setup()
    for _ in range(2):
        for (images, labels), others in zip(train, search, strict=True):
            loss = nn.functional.cross_entropy(model(others[0]), others[1])
            of_mixture.zero_grad()
            loss.backward()
            of_mixture.step()
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0)
            optimizer.step()
    return model


def machine():
    model, optimizer, of_mixture, train, search = setup()
    loss_of = lambda images, labels: nn.functional.cross_entropy(model(images), labels)
    work = Alternating(
        {
            "mixture": Player(model, of_mixture, lambda halves, _: loss_of(*halves[1])),
            "weights": Player(model, optimizer, lambda halves, _: loss_of(*halves[0])),
        },
        together(train, search),
        split=lambda halves: (halves, None),
        samples=lambda halves, _: len(halves[0][0]),
    )
    run(start(work, epochs=2), [clip_grad_norm(5.0, player="weights")])
    return model
