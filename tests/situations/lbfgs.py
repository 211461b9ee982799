"""Logistic regression by LBFGS, whose step evaluates its batch several times, with a penalty on the weights."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import weight_penalty

TRICK = ""


def setup():
    torch.manual_seed(0)
    inputs, target = load_breast_cancer(return_X_y=True)
    inputs, target = torch.tensor(inputs).float(), torch.tensor(target).float()[:, None]
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0)
    model = nn.Linear(30, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")
    return model, optimizer, nn.BCEWithLogitsLoss(), [(inputs, target)]


def plain():
    model, optimizer, criterion, batches = setup()
    for _ in range(10):
        for inputs, target in batches:

            def closure(inputs=inputs, target=target):
                optimizer.zero_grad()
                loss = criterion(model(inputs), target)
                loss = loss + 1e-3 * torch.stack([p.square().sum() for p in model.parameters()]).sum()
                loss.backward()
                return loss

            optimizer.step(closure)
    return model


def machine():
    model, optimizer, criterion, batches = setup()
    run(start(Supervised(model, optimizer, criterion, batches), epochs=10), [weight_penalty(l2=1e-3)])
    return model
