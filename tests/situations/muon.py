"""Muon for the matrices and AdamW for the rest, each with a rate of its own, clipped together."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import clip_grad_norm, schedule
from fsm_train.schedules import linear, warmup
from tests.models import digits, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    muon = torch.optim.Muon([model[0].weight], lr=0.02)
    adamw = torch.optim.AdamW([model[0].bias, *model[2].parameters()], lr=1e-2)
    return model, muon, adamw, shuffled(digits())


def plain():
    model, muon, adamw, train = setup()
    rates = [
        torch.optim.lr_scheduler.LambdaLR(muon, lambda step: 1 - step / 20),
        torch.optim.lr_scheduler.LinearLR(adamw, 0.01, total_iters=5),
    ]
    for _ in range(2):
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, rate in zip((muon, adamw), rates, strict=True):
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
    return model


def machine():
    model, muon, adamw, train = setup()
    work = Supervised(model, {"muon": muon, "adamw": adamw}, nn.functional.cross_entropy, train)
    rates = [schedule(lr=linear(1.0, 0.0, 20), optimizer="muon"), schedule(lr=warmup(5), optimizer="adamw")]
    run(start(work, epochs=2), [clip_grad_norm(1.0), *rates])
    return model
