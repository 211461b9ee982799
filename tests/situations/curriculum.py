"""A curriculum: easy samples first, and more of them with each epoch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from fsm_train import Supervised, run, start
from tests.models import digits

TRICK = ""


class EasyFirst(Sampler):
    """The easiest samples in random order: as many more in each epoch."""

    def __init__(self, difficulty):
        self.order, self.epoch = difficulty.argsort(), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        known = self.order[: len(self.order) * (self.epoch + 1) // 3]
        yield from known[torch.randperm(len(known))].tolist()

    def __len__(self):
        return len(self.order) * (self.epoch + 1) // 3


def setup():
    torch.manual_seed(0)
    data = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    sampler = EasyFirst(data.tensors[0].std(dim=1))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), DataLoader(data, batch_size=32, sampler=sampler)


def plain():
    model, optimizer, train = setup()
    for epoch in range(3):
        train.sampler.set_epoch(epoch)
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def machine():
    model, optimizer, train = setup()
    run(start(Supervised(model, optimizer, nn.functional.cross_entropy, train), epochs=3))
    return model
