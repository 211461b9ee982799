"""Training for quantized weights: their range is observed for some epochs, and is fixed then."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from fsm_train import Supervised, extend, run, start
from tests.models import digits, shuffled

TRICK = ""


class FakeQuantized(nn.Module):
    """Rounds weights to 4 bits, in a range that follows the largest one; the gradient passes as it is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("range", torch.zeros(()))
        self.observes = True

    def forward(self, weight):
        if self.observes and self.training:
            largest = weight.detach().abs().max()
            self.range = torch.where(self.range == 0, largest, 0.9 * self.range + 0.1 * largest)
        scale = self.range / 7
        return weight + ((weight / scale).round().clamp(-7, 7) * scale - weight).detach()


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    quantized = [FakeQuantized(), FakeQuantized()]
    for layer, own in zip((model[0], model[3]), quantized, strict=True):
        parametrize.register_parametrization(layer, "weight", own)
    return model, quantized, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), shuffled(digits())


def plain():
    model, quantized, optimizer, train = setup()
    for epoch in range(4):
        model.train()
        if epoch >= 2:
            model[1].eval()
            for own in quantized:
                own.observes = False
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def machine():
    model, quantized, optimizer, train = setup()
    state = run(start(Supervised(model, optimizer, nn.functional.cross_entropy, train), epochs=2))
    model[1].eval()
    for own in quantized:
        own.observes = False
    run(extend(state, epochs=2))
    return model
