"""DP-SGD: the gradient of each sample is clipped on its own, and noise is added to their sum."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from tests.models import digits, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), shuffled(digits())


def of_each(output, labels):
    each = nn.functional.cross_entropy(output, labels, reduction="none")
    return {"loss": each.mean(), "each": each}


def private(losses, parameters):
    """Abadi et al., 2016: at most 1 from each sample, and noise of that size."""
    each = losses["each"]
    gradients = torch.autograd.grad(each, parameters, torch.eye(len(each)), is_grads_batched=True)
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    shares = (1 / (norms + 1e-6)).clamp(max=1)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        total = torch.einsum("n,n...->...", shares, gradient)
        parameter.grad = (total + torch.randn_like(parameter)) / len(each)


def plain():
    model, optimizer, train = setup()
    for _ in range(2):
        for images, labels in train:
            losses = of_each(model(images), labels)
            optimizer.zero_grad()
            private(losses, list(model.parameters()))
            optimizer.step()
    return model


def machine():
    model, optimizer, train = setup()
    run(start(Supervised(model, optimizer, of_each, train, backward=private), epochs=2))
    return model
