"""Segmentation: a class for each pixel, some of which are ignored, and the overlap of each class over all images."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import Supervised, over_all, run, start
from fsm_train.callbacks import schedule
from fsm_train.schedules import polynomial
from tests.models import digits
from tests.situations.common import unshuffled

TRICK = ""


def setup():
    """What of a noisy image is ink: none, some or much; the margin is not judged."""
    torch.manual_seed(0)
    images = digits(400).tensors[0].view(-1, 1, 8, 8)
    masks = (images[:, 0] * 2.9).long()
    masks[:, [0, -1]] = 255
    data = TensorDataset(images + 0.2 * torch.randn_like(images), masks)
    train, test = random_split(data, [320, 80])
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(8, 3, 3, padding=1))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return model, optimizer, DataLoader(train, batch_size=32, shuffle=True), unshuffled(test, 30)


def mean_iou(scores, masks):
    judged = masks != 255
    found, wanted = scores.argmax(dim=1)[judged], masks[judged]
    counts = (3 * wanted + found).bincount(minlength=9).view(3, 3).double()
    both = counts.diag()
    return (both / (counts.sum(dim=0) + counts.sum(dim=1) - both)).mean()


def plain():
    model, optimizer, train, test = setup()
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=30, power=0.9)
    for _ in range(3):
        model.train()
        for images, masks in train:
            loss = criterion(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        scores, wanted = [], []
        with torch.no_grad():
            for images, masks in test:
                scores.append(model(images))
                wanted.append(masks)
    return model, mean_iou(torch.cat(scores), torch.cat(wanted)).item()


def machine():
    model, optimizer, train, test = setup()
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    work = Supervised(model, optimizer, criterion, train, test, metrics={"iou": over_all(mean_iou)})
    final = run(start(work, epochs=3), [schedule(lr=polynomial(30, power=0.9))])
    return model, final.metrics["valid_iou"]
