"""GradNorm: weights of tasks that are stepped so that their gradients have like norms."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start
from tests.models import digits
from tests.situations.multi_task import TwoHeads

TRICK = "the loss steps an optimizer of its own"


def setup():
    torch.manual_seed(0)
    images, labels = digits().tensors
    model, weights = TwoHeads(), nn.Parameter(torch.ones(2))
    train = DataLoader(TensorDataset(images, labels, images.mean(dim=1)), batch_size=32, shuffle=True)
    optimizers = torch.optim.Adam(model.parameters(), lr=1e-2), torch.optim.SGD([weights], lr=0.05)
    return model, weights, *optimizers, train


def losses_of(output, kinds, ink):
    return torch.stack([nn.functional.cross_entropy(output[0], kinds), nn.functional.mse_loss(output[1], ink)])


def imbalance(weights, losses, first, shared):
    """How far the norms of the weighed gradients are from what the speeds of the tasks ask for: Chen et al., 2018."""
    norms = torch.stack([
        torch.autograd.grad(weight * loss, shared, retain_graph=True, create_graph=True)[0].norm()
        for weight, loss in zip(weights, losses, strict=True)
    ])  # fmt: skip
    slow = (losses / first).detach()
    wanted = norms.mean().detach() * (slow / slow.mean()).sqrt()
    return (norms - wanted).abs().sum()


def plain():
    model, weights, optimizer, of_weights, train = setup()
    first = None
    for _ in range(2):
        for images, *target in train:
            losses = losses_of(model(images), *target)
            if first is None:
                first = losses.detach()
            optimizer.zero_grad()
            (weights.detach() * losses).sum().backward(retain_graph=True)
            (weights.grad,) = torch.autograd.grad(imbalance(weights, losses, first, model.body.weight), weights)
            of_weights.step()
            optimizer.step()
            with torch.no_grad():
                weights.mul_(2 / weights.sum())
    return model, weights


class Balanced(nn.Module):
    """Steps the weights of the tasks whenever it computes their loss in training."""

    def __init__(self, weights, optimizer, shared):
        super().__init__()
        self.weights, self.optimizer, self.shared = weights, optimizer, [shared]
        self.register_buffer("first", torch.zeros(2))

    def forward(self, output, target):
        losses = losses_of(output, *target)
        if not self.first.any():
            self.first = losses.detach()
        loss = (self.weights.detach().clone() * losses).sum()
        (self.weights.grad,) = torch.autograd.grad(
            imbalance(self.weights, losses, self.first, self.shared[0]), self.weights
        )
        self.optimizer.step()
        with torch.no_grad():
            self.weights.mul_(2 / self.weights.sum())
        return loss


def machine():
    model, weights, optimizer, of_weights, train = setup()
    criterion = Balanced(weights, of_weights, model.body.weight)
    work = Supervised(
        *(model, optimizer, criterion, train),
        split=lambda batch: (batch[0], batch[1:]),
        extra={"weights' optimizer": of_weights},
    )
    run(start(work, epochs=2))
    return model, weights
