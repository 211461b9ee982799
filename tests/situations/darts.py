"""DARTS, first order: weights learn from one half of the data, and how operations are mixed from the other."""

import attrs
import torch
from torch import nn
from torch.utils.data import random_split

from fsm_train import Command, Phase, Supervised, Transition, carries_out, on, run, start, together
from fsm_train.callbacks import clip_grad_norm
from tests.models import digits, shuffled

TRICK = "a command steps the optimizer of the mixture"


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


@attrs.frozen
class StepMixture(Command):
    """Train the mixture on the batch of the other half."""


def machine():
    model, optimizer, of_mixture, train, search = setup()

    @carries_out(StepMixture)
    def step(work, command):
        work.inputs, (images, labels) = work.inputs
        (model.alphas.grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), model.alphas)
        of_mixture.step()

    @on(Phase.BATCH_BEGIN, commands={StepMixture})
    def mixture_first(state):
        return Transition(commands=(StepMixture(),))

    work = Supervised(
        *(model, optimizer, nn.functional.cross_entropy, together(train, search)),
        split=lambda batch: ((batch[0][0], batch[1]), batch[0][1]),
        extra={"mixture's optimizer": of_mixture},
    )
    run(start(work, epochs=2), [mixture_first, clip_grad_norm(5.0)])
    return model
