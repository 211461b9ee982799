"""Sharpness-aware minimization: each step has the gradient of a worse place nearby."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from tests.models import digits, network, shuffled

TRICK = ""


class SAM(torch.optim.Optimizer):
    """As in use: two halves of a step around a second evaluation, or `step` with a closure for it."""

    def __init__(self, parameters, base, radius=0.05, **settings):
        super().__init__(parameters, {"radius": radius, **settings})
        self.base = base(self.param_groups, **settings)
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def load_state_dict(self, saved):
        super().load_state_dict(saved)
        self.base.param_groups, self.base.state = self.param_groups, self.state

    @torch.no_grad()
    def first_step(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for parameter in parameters:
            self.state[parameter]["before"] = parameter.clone()
            parameter.add_(parameter.grad * self.param_groups[0]["radius"] / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(self.state[parameter]["before"])
        self.base.step()
        self.zero_grad()

    def step(self, closure=None):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


def setup():
    model = network()
    return model, SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9), shuffled(digits())


def plain():
    model, optimizer, train = setup()
    for _ in range(2):
        for images, labels in train:

            def closure(images=images, labels=labels):
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                return loss

            closure()
            optimizer.step(closure)
    return model


def machine():
    model, optimizer, train = setup()
    run(start(Supervised(model, optimizer, nn.functional.cross_entropy, train, closure=True), epochs=2))
    return model
