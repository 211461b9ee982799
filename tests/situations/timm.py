"""timm's loop: mixup when a batch is collated, soft targets, a rate by updates with warm-up, clipping, its ModelEma."""

import copy
import math

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate, random_split

from fsm_train import Supervised, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, ema, schedule
from fsm_train.schedules import absolute
from tests.models import accuracy, digits
from tests.situations.common import unshuffled

TRICK = ""


def mixed(samples):
    images, labels = default_collate(samples)
    own = torch.distributions.Beta(0.8, 0.8).sample()
    targets = nn.functional.one_hot(labels, 10).float()
    return own * images + (1 - own) * images.flip(0), own * targets + (1 - own) * targets.flip(0)


def rate(update):
    return 1e-4 + update * 1e-3 if update < 5 else 5e-3 * 0.5 * (1 + math.cos(math.pi * update / 15))


def setup():
    torch.manual_seed(0)
    train, test = random_split(digits(400), [320, 80])
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    return model, optimizer, DataLoader(train, batch_size=32, shuffle=True, collate_fn=mixed), unshuffled(test, 40)


def plain():
    model, optimizer, train, test = setup()
    average, updates = copy.deepcopy(model).eval(), 0
    for _ in range(3):
        model.train()
        for batch, (images, targets) in enumerate(train, start=1):
            loss = nn.functional.cross_entropy(model(images), targets) / 2
            loss.backward()
            if batch % 2:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate(updates)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            with torch.no_grad():
                for mean, own in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(own, 1 - 0.9)
                for mean, own in zip(average.buffers(), model.buffers(), strict=True):
                    mean.lerp_(own, 1 - 0.9) if own.is_floating_point() else mean.copy_(own)
        with torch.no_grad():
            right = sum(accuracy(average(images), labels).item() for images, labels in test) / len(test)
    return average, right


def machine():
    model, optimizer, train, test = setup()
    work = Supervised(
        *(model, optimizer, nn.functional.cross_entropy, train, test),
        metrics={
            "accuracy": lambda output, target: accuracy(output, target if target.dim() == 1 else target.argmax(1))
        },
    )
    average = ema(0.9, buffers="average", initial=True)
    callbacks = [accumulate(2), clip_grad_norm(1.0), schedule(lr=absolute(rate)), average]
    final = run(start(work, epochs=3), callbacks)
    return model, final.metrics["valid_accuracy"]
