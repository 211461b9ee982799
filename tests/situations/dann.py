"""Domain-adversarial training: a reversed gradient whose strength grows, and two loaders in lock-step."""

import math

import torch
from torch import nn
from torch.utils.data import TensorDataset

from fsm_train import Supervised, run, start, together
from fsm_train.callbacks import schedule
from tests.models import digits, shuffled

TRICK = ""


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, strength):
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.strength * gradient, None


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.kind, self.domain = nn.Linear(32, 10), nn.Linear(32, 2)

    def forward(self, source, target, strength):
        own, other = self.body(source), self.body(target)
        return self.kind(own), self.domain(Reversed.apply(torch.cat([own, other]), strength))


def loss_of(output, labels):
    kinds, domains = output
    of_domains = torch.arange(2).repeat_interleave(len(labels))
    return nn.functional.cross_entropy(kinds, labels) + nn.functional.cross_entropy(domains, of_domains)


def strength(step):
    return 2 / (1 + math.exp(-10 * step / 20)) - 1


def setup():
    torch.manual_seed(0)
    images, labels = digits().tensors
    model = Adapted()
    source, target = shuffled(TensorDataset(images, labels)), shuffled(TensorDataset(1 - images))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), source, target


def plain():
    model, optimizer, source, target = setup()
    step = 0
    for _ in range(2):
        for (images, labels), (others,) in zip(source, target, strict=True):
            loss = loss_of(model(images, others, strength(step)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return model


def machine():
    model, optimizer, source, target = setup()
    work = Supervised(
        *(model, optimizer, loss_of, together(source, target)),
        split=lambda batch: ((batch[0][0], batch[1][0]), batch[0][1]),
        forward=lambda model, images: model(*images, work.numbers["strength"]),
        numbers={"strength": 0.0},
    )
    run(start(work, epochs=2), [schedule(strength=strength)])
    return model
