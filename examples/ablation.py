# python examples/ablation.py: which tweak earns its place? Each is left out in turn, on a few real digits.
import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import State, Supervised, ablate, start
from fsm_train.callbacks import clip_grad_norm, ema, mixup, schedule
from fsm_train.schedules import one_cycle


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--epochs", type=int, default=15)
    given = options.parse_args()

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    train, valid = random_split(data, [512, 1285], torch.Generator().manual_seed(0))

    def fresh(seed: int) -> State:
        """A training with everything new, so that variants differ in their callbacks alone."""
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 2 * 2, 10)),
        )
        work = Supervised(
            model,
            torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
            nn.CrossEntropyLoss(),
            DataLoader(train, batch_size=32, shuffle=True),
            DataLoader(valid, batch_size=1285),
        )
        return start(work, epochs=given.epochs, seed=seed)

    found = ablate(
        fresh,
        [
            schedule(lr=one_cycle(given.epochs * 16)),  # an epoch has 16 batches
            clip_grad_norm(1.0),
            mixup(0.2),
            ema(0.95),
        ],
        seeds=range(given.seeds),
    )
    print(found)
    print(f"earned its place: {', '.join(found.earned) or 'none of them'}")


if __name__ == "__main__":
    main()
