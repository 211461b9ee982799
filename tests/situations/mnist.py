"""Handwritten digits with a small convolutional network, a test after each epoch, and a rate by epoch."""

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, random_split

from fsm_train import Supervised, run, start
from fsm_train.callbacks import torch_scheduler
from tests.models import accuracy, digits
from tests.situations.common import unshuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    train, test = random_split(digits(400), [320, 80])
    model = nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
        *(nn.Linear(72, 10), nn.LogSoftmax(dim=1)),
    )
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    return model, optimizer, DataLoader(train, batch_size=32, shuffle=True), unshuffled(test, 40)


def plain():
    model, optimizer, train, test = setup()
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    for _ in range(3):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss = nn.functional.nll_loss(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        loss, correct = 0.0, 0
        with torch.no_grad():
            for images, labels in test:
                output = model(images)
                loss += nn.functional.nll_loss(output, labels, reduction="sum").item()
                correct += (output.argmax(dim=1) == labels).sum().item()
        loss, correct = loss / len(test.dataset), correct / len(test.dataset)
        scheduler.step()
    return model, loss, correct


def machine():
    model, optimizer, train, test = setup()
    work = Supervised(model, optimizer, nn.functional.nll_loss, train, test, metrics={"accuracy": accuracy})
    rate = torch_scheduler(lambda own: StepLR(own, step_size=1, gamma=0.7), by="epoch")
    final = run(start(work, epochs=3), [rate])
    return model, final.metrics["valid_loss"], final.metrics["valid_accuracy"]
