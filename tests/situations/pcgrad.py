"""PCGrad: of the gradients of two tasks, each loses what conflicts with the other."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start
from fsm_train.callbacks import clip_grad_norm
from tests.models import digits
from tests.situations.multi_task import TwoHeads

TRICK = ""


def setup():
    torch.manual_seed(0)
    images, labels = digits().tensors
    model = TwoHeads()
    train = DataLoader(TensorDataset(images, labels, images.mean(dim=1)), batch_size=32, shuffle=True)
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), train


def of_both(output, target):
    kind, ink = nn.functional.cross_entropy(output[0], target[0]), nn.functional.mse_loss(output[1], target[1])
    return {"loss": kind + ink, "kind": kind, "ink": ink}


def without_conflict(losses, parameters):
    """Set the gradients to the sum of those of the tasks, each projected where they point against each other."""
    tasks = []
    for name in ("kind", "ink"):
        gradients = torch.autograd.grad(
            losses[name], parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        tasks.append(torch.cat([gradient.flatten() for gradient in gradients]))
    one, other = tasks
    conflict = one.dot(other).clamp(max=0)
    joint = (one - conflict / other.dot(other) * other) + (other - conflict / one.dot(one) * one)
    for parameter, gradient in zip(parameters, joint.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def plain():
    model, optimizer, train = setup()
    for _ in range(2):
        for images, *target in train:
            losses = of_both(model(images), target)
            optimizer.zero_grad()
            without_conflict(losses, list(model.parameters()))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model


def machine():
    model, optimizer, train = setup()
    split = lambda batch: (batch[0], batch[1:])
    work = Supervised(model, optimizer, of_both, train, split=split, backward=without_conflict)
    run(start(work, epochs=2), [clip_grad_norm(1.0)])
    return model
