# python examples/preempted.py: a training that is killed a few times, goes on, and ends with the same weights.
import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import NoCheckpointError, Phase, Supervised, restore, run, start
from fsm_train.callbacks import accumulate, checkpoint, ema, schedule
from fsm_train.schedules import cosine, warmup


def train(folder: Path, seconds_a_batch: float) -> int:
    """What a job on a preemptible machine does: go on if there is something to go on from, and say how it ended."""
    torch.set_num_threads(1)  # sums are taken in one order, so that the last bit can be compared
    images, targets = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(targets))
    train, valid = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds_a_batch)
        return nn.functional.cross_entropy(output, target)

    work = Supervised(model, optimizer, loss_fn, DataLoader(train, 32, shuffle=True), DataLoader(valid, 360))
    callbacks = [
        *(accumulate(2), ema(0.99), schedule(lr=warmup(20).then(cosine(120)))),
        checkpoint(folder, every_steps=10),  # and, always, when it is suspended
    ]
    try:
        state = restore(folder, work)
        print(f"goes on at epoch {state.epoch}, batch {state.batch}", flush=True)
    except NoCheckpointError:
        state = start(work, epochs=5, seed=0)
        print("begins", flush=True)
    final = run(state, callbacks)
    if final.phase is Phase.SUSPENDED:
        return 128 + signal.SIGTERM
    torch.save(model.state_dict(), folder / "final.pt")
    return 0


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    train(undisturbed, 0.0)

    status, kills = -1, 0
    while status != 0:
        command = [sys.executable, __file__, "--folder", str(killed), "--seconds", "0.02"]
        job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        print(job.stdout.readline(), end="", flush=True)
        if kills < 3:
            time.sleep(1.0)
            job.terminate()  # SIGTERM, as a scheduler sends it before it takes the machine away
            kills += 1
        status = job.wait()
        if status:
            print(f"  SIGTERM: left with exit status {status}", flush=True)

    one, other = (torch.load(path / "final.pt", weights_only=True) for path in (undisturbed, killed))
    if not all(torch.equal(one[name], other[name]) for name in one):
        sys.exit("the weights differ")
    print(f"killed {kills} times: all {len(one)} tensors of the final model are the same to the last bit")


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--folder", type=Path)
    options.add_argument("--seconds", type=float, default=0.0)
    given = options.parse_args()
    sys.exit(main() if given.folder is None else train(given.folder, given.seconds))
