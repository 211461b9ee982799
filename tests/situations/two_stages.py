"""Fine-tuning in two stages: first the head, with the body frozen and its statistics kept, then all with two rates."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import freeze
from tests.models import digits, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Linear(32, 10))
    groups = [{"params": model.head.parameters()}, {"params": body.parameters(), "lr": 1e-3}]
    return model, torch.optim.AdamW(groups, lr=1e-2), shuffled(digits())


def plain():
    model, optimizer, train = setup()
    for epoch in range(4):
        model.train()
        model.body.requires_grad_(epoch >= 2)
        if epoch < 2:
            model.body.eval()
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def machine():
    model, optimizer, train = setup()
    work = Supervised(model, optimizer, nn.functional.cross_entropy, train)
    run(start(work, epochs=4), [freeze("body.*", until_epoch=2, train_bn=False)])
    return model
