"""A variational autoencoder: the model draws, the target is the input, and the loss has two parts."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from tests.models import digits, shuffled

TRICK = ""


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())

    def forward(self, images):
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(code), mean, log_variance


def elbo(output, images):
    rebuilt, mean, log_variance = output
    error = nn.functional.binary_cross_entropy(rebuilt, images, reduction="sum") / len(images)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum() / len(images)
    return {"loss": error + divergence, "error": error, "divergence": divergence}


def setup():
    torch.manual_seed(0)
    model = Autoencoder()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), shuffled(digits())


def plain():
    model, optimizer, train = setup()
    for _ in range(3):
        total, divergence = 0.0, 0.0
        for images, _ in train:
            losses = elbo(model(images), images)
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            total += losses["loss"].item() * len(images)
            divergence += losses["divergence"].item() * len(images)
        total, divergence = total / len(train.dataset), divergence / len(train.dataset)
    return model, total, divergence


def machine():
    model, optimizer, train = setup()
    work = Supervised(model, optimizer, elbo, train, split=lambda batch: (batch[0], batch[0]))
    final = run(start(work, epochs=3))
    return model, final.metrics["train_loss"], final.metrics["train_divergence"]
