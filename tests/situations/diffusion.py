"""Diffusion: the model foretells the noise in images; samples are drawn with the average of the weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import ema
from tests.models import digits, shuffled

TRICK = ""
KEPT = torch.linspace(0.99, 0.8, 10).cumprod(dim=0)  # of the image, at each of ten times


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.times = nn.Embedding(10, 32)
        self.enter, self.leave = nn.Linear(64, 32), nn.Linear(32, 64)

    def forward(self, images, times):
        return self.leave((self.enter(images) + self.times(times)).relu())


def noise_error(model, images):
    """The noise that was added, and what the model thinks of it."""
    times, noise = torch.randint(10, (len(images),)), torch.randn_like(images)
    kept = KEPT[times, None]
    return model(kept.sqrt() * images + (1 - kept).sqrt() * noise, times), noise


@torch.no_grad()
def samples(model):
    images = torch.randn(4, 64)
    for time in reversed(range(10)):
        kept, before = KEPT[time], KEPT[time - 1] if time else torch.tensor(1.0)
        noise = model(images, torch.full((4,), time))
        images = before.sqrt() * (images - (1 - kept).sqrt() * noise) / kept.sqrt() + (1 - before).sqrt() * noise
    return images


def setup():
    torch.manual_seed(0)
    model = Denoiser()
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), shuffled(digits())


def plain():
    model, optimizer, train = setup()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        for images, _ in train:
            loss = nn.functional.mse_loss(*noise_error(model, images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
    model = average.module
    return model, samples(model)


def machine():
    model, optimizer, train = setup()
    work = Supervised(
        *(model, optimizer, lambda output, labels: nn.functional.mse_loss(*output), train), forward=noise_error
    )
    run(start(work, epochs=3), [ema(0.9)])
    return model, samples(model)
