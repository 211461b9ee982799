# torchrun --nproc-per-node 2 examples/distributed_digits.py [folder]: the digits, read by two processes as by one.
# The same script runs under python, and takes the same decisions: the union of the processes' batches is the batch.
# With a folder it goes on where it was suspended, or restarted by torchrun --max-restarts.
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import NoCheckpointError, State, Supervised, restore, run, sharded, start
from fsm_train.callbacks import checkpoint, clip_grad_norm, early_stopping, schedule
from fsm_train.schedules import cosine, warmup
from fsm_train.sinks import progress


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def workload() -> Supervised:
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    train, valid = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # all processes begin with the same weights
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Supervised(
        *(model, torch.optim.AdamW(model.parameters(), lr=0.01), nn.CrossEntropyLoss()),
        sharded(DataLoader(train, batch_size=64, shuffle=True)),  # this process's share of each batch
        sharded(DataLoader(valid, batch_size=360)),
        metrics={"accuracy": accuracy},
        parallel="ddp",
    )


def main(folder: Path) -> State:
    work = workload()
    callbacks = [
        schedule(lr=warmup(20).then(cosine(440))),
        clip_grad_norm(1.0),
        early_stopping("valid_loss", patience=3),  # stops all processes after the same epoch
        checkpoint(folder),  # one folder, which all processes write to
    ]
    try:
        state = restore(folder, work)
    except NoCheckpointError:
        state = start(work, epochs=20, seed=0)
    final = run(state, callbacks, log=folder / "run.jsonl", sinks=[progress()])  # one log, and one progress bar
    if work.rank == 0:
        ranks = 1 if work.ranks is None else work.ranks.ranks
        reached = f"valid_accuracy {final.metrics['valid_accuracy']:.3f} after {final.epoch} epochs"
        print(f"{ranks} process{'es' * (ranks > 1)}: {reached}, {final.step} steps, {final.samples} samples")
    return final


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as elsewhere:
        main(Path(sys.argv[1] if sys.argv[1:] else elsewhere))
