"""Distillation: a small model learns from the soft answers of a frozen teacher and from the labels."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from tests.models import digits, network, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    teacher = network()  # with batch norm and dropout: it is to stay in eval mode
    student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))
    return teacher.eval().requires_grad_(False), student, torch.optim.Adam(student.parameters()), shuffled(digits())


def distilled(logits, soft, labels):
    divergence = nn.functional.kl_div((logits / 2).log_softmax(dim=1), (soft / 2).softmax(dim=1), reduction="batchmean")
    return 0.25 * 4 * divergence + 0.75 * nn.functional.cross_entropy(logits, labels)


def plain():
    teacher, student, optimizer, train = setup()
    for _ in range(3):
        student.train()
        for images, labels in train:
            with torch.no_grad():
                soft = teacher(images)
            loss = distilled(student(images), soft, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return teacher, student


def machine():
    teacher, student, optimizer, train = setup()
    work = Supervised(
        *(student, optimizer, lambda output, labels: distilled(*output, labels), train),
        forward=lambda model, images: (model(images), teacher(images)),
    )
    run(start(work, epochs=3))
    return teacher, student
