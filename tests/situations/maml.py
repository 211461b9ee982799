"""MAML: initial weights from which a step of gradient descent on few samples learns a task."""

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start

TRICK = ""


def setup():
    """Sines of different height and phase: ten points to learn from, and ten to be judged by."""
    torch.manual_seed(0)
    inputs = 10 * torch.rand(64, 20, 1) - 5
    target = (0.1 + 4.9 * torch.rand(64, 1, 1)) * (inputs + 3.14 * torch.rand(64, 1, 1)).sin()
    model = nn.Sequential(nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 1))
    train = DataLoader(TensorDataset(inputs, target), batch_size=4, shuffle=True)
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), train


def adapted(model, inputs, target):
    """What the model says of the other points, after a step on the first ten, task by task."""
    outputs = []
    for x, y in zip(inputs, target, strict=True):
        weights = dict(model.named_parameters())
        loss = nn.functional.mse_loss(functional_call(model, weights, x[:10]), y[:10])
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: own - 0.01 * g for (name, own), g in zip(weights.items(), gradients, strict=True)}
        outputs.append(functional_call(model, weights, x[10:]))
    return torch.stack(outputs)


def plain():
    model, optimizer, train = setup()
    for _ in range(2):
        for inputs, target in train:
            loss = nn.functional.mse_loss(adapted(model, inputs, target), target[:, 10:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def machine():
    model, optimizer, train = setup()
    loss_fn = lambda output, target: nn.functional.mse_loss(output, target[:, 10:])
    run(start(Supervised(model, optimizer, loss_fn, train, forward=adapted), epochs=2))
    return model
