# python examples/finetune.py: a network that knows the digits 0 to 4 learns 5 to 9: its head alone, then all of it.
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start
from fsm_train.callbacks import freeze

HEAD_ALONE, EPOCHS = 5, 10
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images, low = (images / 16).float(), labels < 5
known, new = TensorDataset(images[low], labels[low]), TensorDataset(images[~low], labels[~low] - 5)
few, unseen = new[:50], new[50:]
cross_entropy = nn.CrossEntropyLoss()


def accuracy(output, target):
    return (output.argmax(dim=1) == target).float().mean()


def batches():
    return DataLoader(TensorDataset(*few), batch_size=10, shuffle=True, generator=torch.Generator().manual_seed(0))


def with_new_head(model):
    """The model for other digits, and its optimizer: what it knows already has a rate of its own."""
    torch.manual_seed(1)
    model = copy.deepcopy(model)
    model.head = nn.Linear(64, 5)
    groups = [{"params": model.head.parameters(), "lr": 1e-2}, {"params": model.body.parameters(), "lr": 1e-3}]
    return model, torch.optim.AdamW(groups)


torch.manual_seed(0)
pretrained = nn.Sequential()
pretrained.add_module("body", nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()))
pretrained.add_module("head", nn.Linear(64, 5))
optimizer = torch.optim.AdamW(pretrained.parameters(), lr=1e-2)
run(start(Supervised(pretrained, optimizer, cross_entropy, DataLoader(known, 32, shuffle=True)), epochs=5))

model, optimizer = with_new_head(pretrained)
work = Supervised(model, optimizer, cross_entropy, batches(), [unseen], metrics={"accuracy": accuracy})
frozen = freeze("body.*", until_epoch=HEAD_ALONE, train_bn=False)  # the statistics of its batch norm stay too
final = run(start(work, epochs=EPOCHS), [frozen])

plain, optimizer = with_new_head(pretrained)
train = batches()
for epoch in range(EPOCHS):
    plain.body.requires_grad_(epoch >= HEAD_ALONE).train(epoch >= HEAD_ALONE)
    for inputs, target in train:
        cross_entropy(plain(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
assert all(torch.equal(*both) for both in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
scores = [f"{metrics['valid_accuracy']:.3f}" for metrics in final.history]
print(f"valid_accuracy, head alone: {' '.join(scores[:HEAD_ALONE])}; all of it: {' '.join(scores[HEAD_ALONE:])}")
