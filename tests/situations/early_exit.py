"""Early exits: a classifier after each block, trained together; a test leaves at the first one that is sure."""

import torch
from torch import nn
from torch.utils.data import random_split

from fsm_train import Supervised, run, start
from tests.models import accuracy, digits, shuffled
from tests.situations.common import unshuffled

TRICK = ""


class Exits(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(64, 10) for _ in range(3))

    def forward(self, images):
        outputs = []
        for block, leave in zip(self.blocks, self.exits, strict=True):
            images = block(images)
            outputs.append(leave(images))
        return outputs


def of_all(outputs, labels):
    losses = [nn.functional.cross_entropy(output, labels) for output in outputs]
    return losses[0] + 0.5 * losses[1] + 0.25 * losses[2]


def sure(outputs, labels):
    """The accuracy, each sample leaving where the probability is above a half."""
    chosen = outputs[-1]
    for output in reversed(outputs[:-1]):
        chosen = torch.where(output.softmax(dim=1).amax(dim=1, keepdim=True) > 0.5, output, chosen)
    return accuracy(chosen, labels)


def setup():
    torch.manual_seed(0)
    train, test = random_split(digits(400), [320, 80])
    model = Exits()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), shuffled(train), unshuffled(test, 40)


def plain():
    model, optimizer, train, test = setup()
    for _ in range(3):
        model.train()
        for images, labels in train:
            loss = of_all(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(sure(model(images), labels).item() for images, labels in test) / len(test)
    return model, right


def machine():
    model, optimizer, train, test = setup()
    final = run(start(Supervised(model, optimizer, of_all, train, test, metrics={"sure": sure}), epochs=3))
    return model, final.metrics["valid_sure"]
