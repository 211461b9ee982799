"""SimCLR: two noisy views of each image, and a loss over all pairs in the batch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fsm_train import Supervised, run, start
from tests.models import digits

TRICK = ""


class Views(Dataset):
    def __init__(self):
        self.images, self.labels = digits().tensors

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return [self.images[index] + 0.1 * torch.randn(64) for _ in range(2)], self.labels[index]


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), DataLoader(Views(), batch_size=64, shuffle=True)


def contrastive(features, temperature=0.5):
    features = nn.functional.normalize(features, dim=1)
    likeness = (features @ features.T / temperature).fill_diagonal_(-1e9)
    other = torch.arange(len(features)).roll(len(features) // 2)
    return nn.functional.cross_entropy(likeness, other)


def plain():
    model, optimizer, train = setup()
    for _ in range(2):
        for views, _ in train:
            loss = contrastive(model(torch.cat(views)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def machine():
    model, optimizer, train = setup()
    work = Supervised(
        *(model, optimizer, lambda features, labels: contrastive(features), train),
        forward=lambda model, views: model(torch.cat(views)),
    )
    run(start(work, epochs=2))
    return model
