"""Cross-validation: a model for each fold, and the mean of their scores."""

import torch
from sklearn.model_selection import KFold
from torch import nn
from torch.utils.data import Subset

from fsm_train import Supervised, run, start
from tests.models import diabetes, shuffled
from tests.situations.common import unshuffled

TRICK = ""


def setup():
    return [
        (shuffled(Subset(diabetes(), train)), unshuffled(Subset(diabetes(), test), 100))
        for train, test in KFold(4).split(range(442))
    ]


def network(fold):
    torch.manual_seed(fold)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def plain():
    folds = setup()
    models, scores = [], []
    for fold, (train, test) in enumerate(folds):
        model, optimizer = network(fold)
        for _ in range(2):
            model.train()
            for inputs, target in train:
                loss = nn.functional.mse_loss(model(inputs), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            errors = [nn.functional.mse_loss(model(x), y).item() * len(x) for x, y in test]
        models.append(model)
        scores.append(sum(errors) / len(test.dataset))
    return models, sum(scores) / len(scores)


def machine():
    folds = setup()
    models, scores = [], []
    for fold, (train, test) in enumerate(folds):
        model, optimizer = network(fold)
        final = run(start(Supervised(model, optimizer, nn.functional.mse_loss, train, test), epochs=2))
        models.append(model)
        scores.append(final.metrics["valid_loss"])
    return models, sum(scores) / len(scores)
