"""Tune a network on handwritten digits with Optuna: a study in SQLite, in which bad trials are pruned.

`python examples/tune.py study.db` goes on with the study that is there: stop it and start it again as you like.
It needs `pip install 'fsm-train[optuna]'`.
"""

import sys
from pathlib import Path

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start
from fsm_train.callbacks import schedule, stop_pruned
from fsm_train.schedules import cosine
from fsm_train.tuning import result, verdict

images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
train, valid = torch.utils.data.random_split(data, [1437, 360], torch.Generator().manual_seed(0))


def accuracy(output, target):
    return (output.argmax(dim=1) == target).float().mean()


def objective(trial):
    """The accuracy that a network of this width reaches with this rate in eight epochs."""
    torch.manual_seed(0)
    width = trial.suggest_int("width", 8, 128, log=True)
    rate = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    work = Supervised(
        *(model, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9), nn.CrossEntropyLoss()),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(valid, batch_size=360),
        metrics={"accuracy": accuracy},
        sensors={"pruned": verdict(trial, "valid_accuracy")},
    )
    final = run(start(work, epochs=8, seed=0), [schedule(lr=cosine(184)), stop_pruned()])
    return result(final, "valid_accuracy")


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "study.db")
    study = optuna.create_study(
        storage=f"sqlite:///{path}",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
        study_name="digits",
        direction="maximize",
        load_if_exists=True,
    )
    study.optimize(objective, n_trials=12)
    pruned = sum(trial.state.name == "PRUNED" for trial in study.trials)
    best = ", ".join(f"{name} {value:.3g}" for name, value in study.best_params.items())
    print(f"{len(study.trials)} trials, {pruned} of them pruned. The best reached {study.best_value:.3f} with {best}.")
    assert study.best_value > 0.95
