"""torchvision's reference: label smoothing, no decay of norms, warm-up and cosine by epoch, clipping, an average."""

import copy

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import random_split

from fsm_train import Evaluation, Supervised, run, start, weights
from fsm_train.callbacks import clip_grad_norm, ema, torch_scheduler
from tests.models import accuracy, digits, shuffled
from tests.situations.common import unshuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    train, test = random_split(digits(400), [320, 80])
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    norms, others = ([p for p in model.parameters() if (p.dim() == 1) is wanted] for wanted in (True, False))
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 1e-2}]
    return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9), shuffled(train), unshuffled(test, 40)


def rates(optimizer):
    rising, falling = LinearLR(optimizer, start_factor=0.1, total_iters=2), CosineAnnealingLR(optimizer, T_max=3)
    return SequentialLR(optimizer, [rising, falling], milestones=[2])


def plain():
    model, optimizer, train, test = setup()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    scheduler = rates(optimizer)
    for _ in range(4):
        model.train()
        for step, (images, labels) in enumerate(train, start=1):
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 2 == 0:
                average.update_parameters(model)
        scheduler.step()
        measured = []
        for measuring in (model, average):
            measuring.eval()
            with torch.inference_mode():
                right = sum(accuracy(measuring(images), labels).item() for images, labels in test)
            measured.append(right / len(test))
    return model, average.module, measured


def machine():
    model, optimizer, train, test = setup()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    both = {"own": test, "ema": Evaluation(test, weights="ema")}
    work = Supervised(model, optimizer, criterion, train, both, metrics={"accuracy": accuracy})
    average = ema(0.9, every=2, validate=False)
    final = run(start(work, epochs=4), [clip_grad_norm(1.0), torch_scheduler(rates, by="epoch"), average])
    own = copy.deepcopy(model)
    with weights(work, "ema"):
        averaged = copy.deepcopy(model)
    return own, averaged, [final.metrics["valid_own_accuracy"], final.metrics["valid_ema_accuracy"]]
