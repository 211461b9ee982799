"""Forward-forward: each layer learns by itself to tell images with their label from those with another one."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from tests.models import digits

TRICK = ""


class Layer(nn.Linear):
    def forward(self, images):
        return super().forward(nn.functional.normalize(images, dim=1)).relu()


def setup():
    torch.manual_seed(0)
    images, labels = digits(200).tensors
    others = (labels + torch.randint(1, 10, labels.shape)) % 10
    labelled = [torch.cat([nn.functional.one_hot(kind, 10), images], dim=1) for kind in (labels, others)]
    return nn.ModuleList([Layer(74, 64), Layer(64, 64)]), *labelled


def goodness(true, false):
    return nn.functional.softplus(torch.cat([2 - true.square().mean(dim=1), false.square().mean(dim=1) - 2])).mean()


def plain():
    layers, true, false = setup()
    for layer in layers:
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        for _ in range(15):
            loss = goodness(layer(true), layer(false))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            true, false = layer(true), layer(false)
    return layers


def machine():
    layers, true, false = setup()
    for layer in layers:
        work = Supervised(
            *(layer, torch.optim.Adam(layer.parameters(), lr=0.01), lambda output, _: goodness(*output)),
            [(true, false)],
            forward=lambda layer, true, false: (layer(true), layer(false)),
        )
        run(start(work, epochs=15))
        with torch.no_grad():
            true, false = layer(true), layer(false)
    return layers
