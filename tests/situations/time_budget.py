"""A budget of seconds: the batch under way is finished, and a last test is made. The data move the clock."""

import time
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.data import random_split

from fsm_train import Supervised, run, start
from tests.models import digits, network, sgd, shuffled
from tests.situations.common import unshuffled

TRICK = ""


class Clock:
    seconds = 0.0

    def collate(self, samples):
        self.seconds += 1.0
        return torch.utils.data.default_collate(samples)


def setup():
    model, clock = network(), Clock()
    train, test = random_split(digits(400), [320, 80])
    train = shuffled(train)
    train.collate_fn = clock.collate
    return model, sgd(model), train, unshuffled(test, 40), patch("time.perf_counter", lambda: clock.seconds)


def plain():
    model, optimizer, train, test, moved_by_data = setup()
    with moved_by_data:
        began, over = time.perf_counter(), False
        while not over:
            model.train()
            for images, labels in train:
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if over := time.perf_counter() - began >= 25:
                    break
            model.eval()
            with torch.no_grad():
                losses = [nn.functional.cross_entropy(model(images), labels).item() for images, labels in test]
    return model, sum(losses) / len(losses)


def machine():
    model, optimizer, train, test, moved_by_data = setup()
    with moved_by_data:
        final = run(start(Supervised(model, optimizer, nn.functional.cross_entropy, train, test), seconds=25))
    return model, final.metrics["valid_loss"]
