"""Half precision with a gradient scaler, which holds the first steps back; accumulation and clipping beside it."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, mixed_precision
from tests.models import digits, network, sgd, shuffled

TRICK = ""


def setup():
    model = network()
    return model, sgd(model), shuffled(digits())


def plain():
    model, optimizer, train = setup()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    for _ in range(3):
        for batch, (images, labels) in enumerate(train, start=1):
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(images), labels) / 2
            scaler.scale(loss).backward()
            if batch % 2 == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    return model


def machine():
    model, optimizer, train = setup()
    work = Supervised(model, optimizer, nn.functional.cross_entropy, train)
    half = mixed_precision("float16", initial_scale=2.0**24)
    run(start(work, epochs=3), [half, accumulate(2), clip_grad_norm(1.0)])
    return model
