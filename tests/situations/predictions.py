"""A test set after the training: its loss, and the outputs for all of it, joined."""

import torch
from torch import nn
from torch.utils.data import random_split

from fsm_train import Supervised, evaluate, predict, run, start
from tests.models import digits, network, sgd, shuffled
from tests.situations.common import unshuffled

TRICK = ""


def setup():
    model = network()
    train, test = random_split(digits(400), [320, 80])
    return model, sgd(model), shuffled(train), unshuffled(test, 32)


def plain():
    model, optimizer, train, test = setup()
    for images, labels in train:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    outputs, total = [], 0.0
    with torch.no_grad():
        for images, labels in test:
            outputs.append(model(images))
            total += nn.functional.cross_entropy(outputs[-1], labels, reduction="sum").item()
    return model, torch.cat(outputs), total / len(test.dataset)


def machine():
    model, optimizer, train, test = setup()
    work = Supervised(model, optimizer, nn.functional.cross_entropy, train)
    run(start(work, epochs=1))
    outputs, measured = predict(work, test), evaluate(work, test)
    return model, outputs, measured["test_loss"]
