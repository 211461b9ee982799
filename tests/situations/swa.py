"""Stochastic weight averaging as in torch's documentation: a constant rate at the end, and batch norm fitted anew."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import schedule, swa
from fsm_train.schedules import constant, linear
from tests.models import digits, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), shuffled(digits())


def plain():
    model, optimizer, train = setup()
    average = AveragedModel(model)
    for epoch in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - epoch / 4) if epoch < 2 else 0.05
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch >= 2:
            average.update_parameters(model)
    update_bn(train, average)
    return average.module


def machine():
    model, optimizer, train = setup()
    rate = schedule(lr=linear(1.0, 0.5, 2).then(constant(0.5)), by="epoch")
    run(start(Supervised(model, optimizer, nn.functional.cross_entropy, train), epochs=6), [rate, swa(start_epoch=2)])
    return model
