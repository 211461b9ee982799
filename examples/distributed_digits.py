# torchrun --nproc-per-node 2 examples/distributed_digits.py [folder]: the digits, read by two processes as by one.
# The same script runs under python, and takes the same decisions: the union of the processes' batches is the batch.
import os
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

from fsm_train import State, Supervised, run, start
from fsm_train.callbacks import clip_grad_norm, early_stopping, schedule
from fsm_train.schedules import cosine, warmup
from fsm_train.sinks import progress

RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def share(data: Subset[tuple[torch.Tensor, ...]], batch_size: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    """This process's part of the data, in batches whose union counts `batch_size`. No sample is read twice."""
    part = Subset(data, range(RANK, len(data), RANKS))
    return DataLoader(part, batch_size // RANKS, shuffle=batch_size < len(data))


def workload() -> Supervised:
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    train, valid = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # all processes begin with the same weights
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data_of_rank, metrics = (share(train, 64), share(valid, 360)), {"accuracy": accuracy}
    return Supervised(model, optimizer, nn.CrossEntropyLoss(), *data_of_rank, metrics=metrics, parallel="ddp")


def main(folder: Path) -> State:
    work = workload()
    callbacks = [
        schedule(lr=warmup(20).then(cosine(400))),
        clip_grad_norm(1.0),
        early_stopping("valid_loss", patience=3),  # stops all processes after the same epoch
    ]
    # The processes write one log, and show one progress bar.
    final = run(start(work, epochs=20, seed=0), callbacks, log=folder / "run.jsonl", sinks=[progress()])
    if work.rank == 0:
        print(
            f"{RANKS} process{'es' * (RANKS > 1)}: valid_accuracy {final.metrics['valid_accuracy']:.3f} after ", end=""
        )
        print(f"{final.epoch} epochs, {final.step} steps, {final.samples} samples")
    return final


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()))
