"""DINO: a teacher that follows with a momentum of its own schedule, and a centre of its answers."""

import copy
import math

import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Phase, Supervised, Transition, on, run, start, weights
from fsm_train.commands import KeepAverage, UpdateAverage
from tests.situations.simclr import Views

TRICK = "the loss changes the centre"


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), DataLoader(Views(), batch_size=32, shuffle=True)


def momentum(step):
    return 1 - 0.5 * (1 - 0.9) * (1 + math.cos(math.pi * step / 20))


def distance(student, teacher, center):
    soft = ((teacher - center) / 0.04).softmax(dim=-1).chunk(2)
    hard = (student / 0.1).log_softmax(dim=-1).chunk(2)
    return sum(-(a * b).sum(dim=-1).mean() for a, b in zip(soft, reversed(hard), strict=True)) / 2


def plain():
    model, optimizer, train = setup()
    teacher, center, step = copy.deepcopy(model), torch.zeros(16), 0
    for _ in range(2):
        for views, _ in train:
            views = torch.cat(views)
            student = model(views)
            with torch.no_grad():
                answers = teacher(views)
            loss = distance(student, answers, center)
            center = center * 0.9 + answers.mean(dim=0) * 0.1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 1 - momentum(step))
            step += 1
    return model, center


class Centre(nn.Module):
    """Of the teacher's answers so far: a buffer, and with it a part of what is saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, output, labels):
        student, teacher = output
        loss = distance(student, teacher, self.mean)
        if self.training:
            self.mean = self.mean * 0.9 + teacher.mean(dim=0) * 0.1
        return loss


def with_momentum(momentum):
    """Keep a teacher that begins with the first weights and follows by `momentum` of the step."""

    @on(Phase.SETUP, Phase.TRAIN_BEGIN, Phase.STEP_END, commands={KeepAverage, UpdateAverage})
    def teacher(state):
        if state.phase is Phase.SETUP:
            return Transition(commands=(KeepAverage("teacher", 0.9),))
        decay = None if state.phase is Phase.TRAIN_BEGIN else momentum(state.step - 1)
        return Transition(commands=(UpdateAverage("teacher", decay),))

    return teacher


def machine():
    model, optimizer, train = setup()

    def both(model, views):
        views = torch.cat(views)
        student = model(views)
        with weights(work, "teacher"):
            return student, model(views)

    center = Centre()
    work = Supervised(model, optimizer, center, train, forward=both)
    run(start(work, epochs=2), [with_momentum(momentum)])
    return model, center.mean
