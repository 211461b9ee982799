# python examples/pruning.py: prune a network while it is trained, suspended in between; the weights of the plain loop.
import tempfile

import attrs
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Command, Flag, Phase, State, Supervised, Transition, carries_out, on, restore, run, start
from fsm_train.callbacks import checkpoint

images, labels = map(torch.tensor, load_digits(return_X_y=True))
data = TensorDataset(images.float() / 16, labels)


@attrs.frozen
class Prune(Command):
    share: float  # of the weights that each layer has left: the smallest ones
    changes_modules = True  # a checkpoint lists it, and restore carries it out before it loads


@carries_out(Prune)
def prune_layers(work: Supervised, command: Prune) -> None:
    for layer in (part for part in work.model.modules() if isinstance(part, nn.Linear)):
        prune.l1_unstructured(layer, "weight", command.share)


@on(Phase.EPOCH_BEGIN, Phase.BATCH_END)
def halve(state: State) -> Transition | None:
    """Prune half of what is left when the epochs 2, 4 and 6 begin; be suspended in the middle of epoch 4."""
    if state.phase is Phase.EPOCH_BEGIN and state.epoch in (2, 4, 6):
        return Transition(commands=(Prune(0.5),))
    return Transition(flags=Flag.SUSPEND) if state.phase is Phase.BATCH_END and state.iteration == 250 else None


def fresh() -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    loader = DataLoader(data, batch_size=32, shuffle=True)
    return Supervised(model, torch.optim.Adam(model.parameters(), lr=0.005), nn.CrossEntropyLoss(), loader)


with tempfile.TemporaryDirectory() as folder:
    run(start(fresh(), epochs=8), [halve, checkpoint(folder)])
    final = run(restore(folder, work := fresh()), [halve, checkpoint(folder)])

plain = fresh()  # for its parts alone
for epoch in range(8):
    if epoch in (2, 4, 6):
        prune_layers(plain, Prune(0.5))
    for inputs, target in plain.train:
        plain.loss_fn(plain.model(inputs), target).backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
assert all(map(torch.equal, work.model.state_dict().values(), plain.model.state_dict().values()))
left = sum(work.model[i].weight.count_nonzero().item() for i in (0, 2)) / (64 * 128 + 128 * 10)
print(f"equal to the plain loop, {left:.1%} of the weights left, train_loss {final.metrics['train_loss']:.4f}")
