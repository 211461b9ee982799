"""Continual learning: one task after the other, with elastic weights that hold what earlier ones need."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from fsm_train import Supervised, run, start
from tests.models import accuracy, digits, shuffled
from tests.situations.common import unshuffled

TRICK = ""


class Elastic(nn.Module):
    """Cross-entropy, and how far the weights are from those of the task before: Kirkpatrick et al., 2017."""

    def __init__(self, model):
        super().__init__()
        self.model, self.anchors = [model], []

    def forward(self, output, target):
        loss = nn.functional.cross_entropy(output, target)
        for weights, importance in self.anchors:
            pairs = zip(self.model[0].parameters(), weights, importance, strict=True)
            loss = loss + 10.0 * sum((share * (now - then).square()).sum() for now, then, share in pairs)
        return loss

    def hold(self, data):
        loss = nn.functional.cross_entropy(self.model[0](data.tensors[0]), data.tensors[1])
        gradients = torch.autograd.grad(loss, list(self.model[0].parameters()))
        weights = [parameter.detach().clone() for parameter in self.model[0].parameters()]
        self.anchors.append((weights, [gradient.square() for gradient in gradients]))


def setup():
    torch.manual_seed(0)
    images, labels = digits().tensors
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    tasks = [TensorDataset(images[labels // 4 == task], labels[labels // 4 == task]) for task in range(2)]
    return model, Elastic(model), tasks, unshuffled(tasks[0], 50)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain():
    model, criterion, tasks, first = setup()
    remembered = []
    for task in tasks:
        optimizer = optimizer_of(model)
        for _ in range(3):
            for images, labels in shuffled(task):
                loss = criterion(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        criterion.hold(task)
        with torch.no_grad():
            right = [accuracy(model(images), labels).item() * len(labels) for images, labels in first]
        remembered.append(sum(right) / len(first.dataset))
    return model, remembered


def machine():
    model, criterion, tasks, first = setup()
    remembered = []
    for task in tasks:
        work = Supervised(
            *(model, optimizer_of(model), criterion, shuffled(task), first), metrics={"accuracy": accuracy}
        )
        final = run(start(work, epochs=3))
        criterion.hold(task)
        remembered.append(final.metrics["valid_accuracy"])
    return model, remembered
