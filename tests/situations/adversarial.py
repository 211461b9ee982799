"""Adversarial training by FGSM, and the accuracy under the attack, for which a test needs gradients too."""

import torch
from torch import nn
from torch.utils.data import random_split

from fsm_train import Supervised, run, start
from tests.models import accuracy, digits, shuffled
from tests.situations.common import unshuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    train, test = random_split(digits(400), [320, 80])
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), shuffled(train), unshuffled(test, 40)


def attacked(model, images, labels):
    images = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(images), labels)
    (gradient,) = torch.autograd.grad(loss, images)
    return model((images + 0.1 * gradient.sign()).clamp(0, 1).detach())


def plain():
    model, optimizer, train, test = setup()
    for _ in range(3):
        model.train()
        for images, labels in train:
            loss = nn.functional.cross_entropy(attacked(model, images, labels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        robust = sum(accuracy(attacked(model, images, labels), labels).item() for images, labels in test) / len(test)
    return model, robust


def machine():
    model, optimizer, train, test = setup()
    work = Supervised(
        *(model, optimizer, nn.functional.cross_entropy, train, test),
        forward=attacked,
        metrics={"robust": accuracy},
        grad_in_valid=True,
    )
    final = run(start(work, epochs=3))
    return model, final.metrics["valid_robust"]
