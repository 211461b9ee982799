"""Lookahead: an optimizer around another one, whose slow weights follow each fifth step."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import torch_scheduler
from tests.models import digits, network, shuffled

TRICK = ""


class Lookahead(torch.optim.Optimizer):
    """As written by most: it shares groups and state with what it wraps. Zhang et al., 2019."""

    def __init__(self, base, every=5, share=0.5):
        super().__init__(base.param_groups, base.defaults)
        self.base, self.every, self.share = base, every, share
        self.param_groups, self.state = base.param_groups, base.state
        for group in self.param_groups:
            group["since"] = 0
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter]["slow"] = parameter.detach().clone()

    def load_state_dict(self, saved):
        self.base.load_state_dict(saved)
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.base.step(closure)
        for group in self.param_groups:
            group["since"] = (group["since"] + 1) % self.every
            if group["since"] == 0:
                for parameter in group["params"]:
                    parameter.copy_(self.state[parameter]["slow"].lerp_(parameter, self.share))
        return loss


def setup():
    model = network()
    return model, Lookahead(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)), shuffled(digits())


def rates(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)


def plain():
    model, optimizer, train = setup()
    scheduler = rates(optimizer)
    for _ in range(3):
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return model


def machine():
    model, optimizer, train = setup()
    run(start(Supervised(model, optimizer, nn.functional.cross_entropy, train), epochs=3), [torch_scheduler(rates)])
    return model
