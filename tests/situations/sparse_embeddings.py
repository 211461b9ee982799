"""Embeddings with sparse gradients: words foretell those beside them, with negative samples."""

import inspect

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start
from fsm_train.callbacks import schedule
from fsm_train.schedules import linear

TRICK = ""


class SkipGram(nn.Module):
    def __init__(self):
        super().__init__()
        self.centers, self.contexts = (nn.Embedding(128, 16, sparse=True) for _ in range(2))

    def forward(self, words, beside):
        unlike = torch.randint(128, (len(words), 4))
        others = self.contexts(torch.cat([beside[:, None], unlike], dim=1))
        return (others @ self.centers(words)[:, :, None])[:, :, 0]


def negative_sampling(scores, _):
    return -(nn.functional.logsigmoid(scores[:, 0]) + nn.functional.logsigmoid(-scores[:, 1:]).sum(dim=1)).mean()


def setup():
    torch.manual_seed(0)
    text = torch.tensor(list(inspect.getsource(inspect).encode())[:1025])
    model = SkipGram()
    train = DataLoader(TensorDataset(text[:-1], text[1:]), batch_size=64, shuffle=True)
    return model, torch.optim.SparseAdam(model.parameters(), lr=0.01), train


def plain():
    model, optimizer, train = setup()
    total = 2 * len(train)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(2):
        for words, beside in train:
            loss = negative_sampling(model(words, beside), None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return model


def machine():
    model, optimizer, train = setup()
    work = Supervised(model, optimizer, negative_sampling, train, split=lambda pair: (pair, None))
    run(start(work, epochs=2), [schedule(lr=linear(1.0, 0.0, 2 * len(train)))])
    return model
