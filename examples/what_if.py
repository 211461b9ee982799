# python examples/what_if.py: trains the digits once, then asks the log when other patiences would have stopped.
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import State, Supervised, run, start, sweep
from fsm_train.callbacks import clip_grad_norm, early_stopping


def workload() -> Supervised:
    images, targets = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(targets))
    train, valid = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    return Supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=0.01),
        nn.CrossEntropyLoss(),
        DataLoader(train, batch_size=128, shuffle=True),
        DataLoader(valid, batch_size=360),
    )


def train(patience: int, log: Path | None = None) -> State:
    callbacks = [clip_grad_norm(1.0), early_stopping("valid_loss", patience=patience)]
    return run(start(workload(), epochs=100, seed=0), callbacks, log=log)


def main() -> None:
    torch.set_num_threads(1)  # more only get in each other's way with a network this small
    log = Path(tempfile.mkdtemp()) / "digits.jsonl"
    final = train(10, log)
    print(f"patience 10 stopped after {final.epoch} epochs; its log has {log.stat().st_size / 1024:.0f} kB\n")

    table = sweep(log, early_stopping, patience=range(1, 11))
    print(table, "\n")

    for patience in (2, 5):  # and is that true? Train again, and see
        answer = dict(zip(range(1, 11), (answer for _, answer in table), strict=True))[patience]
        really = train(patience)
        assert answer.verdict == "exact"
        assert (answer.stopped_at, answer.state.history) == (really.epoch, really.history)
        print(f"trained again with patience {patience}: it stopped after {really.epoch} epochs, with the same metrics")


if __name__ == "__main__":
    main()
