"""A siamese network: one model for an anchor, a like and an unlike image, with the triplet loss."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fsm_train import Supervised, run, start
from tests.models import digits

TRICK = ""


class Triplets(Dataset):
    def __init__(self):
        self.images, self.labels = digits().tensors

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        like = (self.labels == self.labels[index]).nonzero()[:, 0]
        unlike = (self.labels != self.labels[index]).nonzero()[:, 0]
        others = (kind[torch.randint(len(kind), ())] for kind in (like, unlike))
        return self.images[index], *(self.images[other] for other in others)


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), DataLoader(Triplets(), batch_size=32, shuffle=True)


def plain():
    model, optimizer, train = setup()
    criterion = nn.TripletMarginLoss(margin=1.0)
    for _ in range(2):
        for anchor, like, unlike in train:
            loss = criterion(model(anchor), model(like), model(unlike))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def machine():
    model, optimizer, train = setup()
    criterion = nn.TripletMarginLoss(margin=1.0)
    work = Supervised(
        *(model, optimizer, lambda output, _: criterion(*output), train),
        forward=lambda model, images: [model(image) for image in images],
        split=lambda batch: (batch, None),
        samples=lambda images, _: len(images[0]),
    )
    run(start(work, epochs=2))
    return model
