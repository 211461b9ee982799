# python examples/digits.py: a small network learns to read real handwritten digits, in seconds.
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import Callback, State, Supervised, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, schedule
from fsm_train.schedules import cosine, warmup
from fsm_train.sinks import progress


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def workload() -> Supervised:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    train, valid = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * 4 * 4, 10)),
    )
    return Supervised(
        model,
        torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01),
        nn.CrossEntropyLoss(),
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(valid, batch_size=360),
        metrics={"accuracy": accuracy},
    )


def callbacks() -> list[Callback[Any]]:
    return [
        accumulate(2),  # 45 batches of 32 an epoch: 22 steps of 64 and a leftover one
        clip_grad_norm(1.0),
        schedule(lr=warmup(30).then(cosine(320))),
        early_stopping("valid_loss", patience=3),
    ]


def main() -> State:
    final = run(start(workload(), epochs=15, seed=0), callbacks(), sinks=[progress()])
    print(f"valid_accuracy {final.metrics['valid_accuracy']:.3f} after {final.epoch} epochs, {final.step} steps")
    print(f"stopped because: {final.reason or 'all epochs are done'}")
    return final


if __name__ == "__main__":
    main()
