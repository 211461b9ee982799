"""Super-resolution: images of twice the size from small ones, measured as a signal-to-noise ratio."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import Supervised, run, start
from tests.models import digits
from tests.situations.common import unshuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    images = digits(360).tensors[0].view(-1, 1, 8, 8)
    train, test = random_split(TensorDataset(nn.functional.avg_pool2d(images, 2), images), [320, 40])
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return model, optimizer, DataLoader(train, batch_size=32, shuffle=True), unshuffled(test, 20)


def psnr(output, target):
    return 10 * torch.log10(1 / nn.functional.mse_loss(output, target))


def plain():
    model, optimizer, train, test = setup()
    for _ in range(3):
        model.train()
        for small, large in train:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(small), large)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            ratio = sum(psnr(model(small), large).item() for small, large in test) / len(test)
    return model, ratio


def machine():
    model, optimizer, train, test = setup()
    work = Supervised(model, optimizer, nn.functional.mse_loss, train, test, metrics={"psnr": psnr})
    final = run(start(work, epochs=3))
    return model, final.metrics["valid_psnr"]
