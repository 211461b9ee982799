"""Pruning step by step: after each two epochs the smallest weights of a layer go, and the rest is trained on."""

import torch
from torch import nn
from torch.nn.utils import prune

from fsm_train import Supervised, extend, run, start
from tests.models import digits, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), shuffled(digits())


def plain():
    model, optimizer, train = setup()
    for epoch in range(6):
        if epoch in (2, 4):
            prune.l1_unstructured(model[0], "weight", amount=0.5)
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    prune.remove(model[0], "weight")
    return model


def machine():
    model, optimizer, train = setup()
    state = run(start(Supervised(model, optimizer, nn.functional.cross_entropy, train), epochs=2))
    for _ in range(2):
        prune.l1_unstructured(model[0], "weight", amount=0.5)
        state = run(extend(state, epochs=2))
    prune.remove(model[0], "weight")
    return model
