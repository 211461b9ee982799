"""An ensemble as one: the weights of several models are stacked, and vmap goes through all of them at once."""

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from fsm_train import Supervised, run, start
from tests.models import digits, shuffled

TRICK = "a module that holds the stacked weights"


def setup():
    torch.manual_seed(0)
    members = [nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)) for _ in range(4)]
    return members, shuffled(digits())


def of_all(outputs, labels):
    """The sum of the losses of all members, whose outputs are beside each other in the second dimension."""
    members = outputs.shape[1]
    return members * nn.functional.cross_entropy(outputs.flatten(0, 1), labels.repeat_interleave(members))


def plain():
    members, train = setup()
    weights, buffers = stack_module_state(members)
    optimizer = torch.optim.Adam(weights.values(), lr=1e-2)
    member = lambda weights, buffers, images: functional_call(members[0], (weights, buffers), (images,))
    for _ in range(2):
        for images, labels in train:
            outputs = vmap(member, in_dims=(0, 0, None), out_dims=1)(weights, buffers, images)
            loss = of_all(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights


class Ensemble(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.member, (weights, self.stacked) = [members[0]], stack_module_state(members)
        self.names, self.weights = list(weights), nn.ParameterList(weights.values())

    def forward(self, images):
        member = lambda weights, buffers: functional_call(self.member[0], (weights, buffers), (images,))
        return vmap(member, out_dims=1)(dict(zip(self.names, self.weights, strict=True)), self.stacked)


def machine():
    members, train = setup()
    model = Ensemble(members)
    run(start(Supervised(model, torch.optim.Adam(model.parameters(), lr=1e-2), of_all, train), epochs=2))
    return list(model.weights)
