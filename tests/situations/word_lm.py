"""A language model whose hidden state is carried from window to window, with clipping."""

import inspect

import torch
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import clip_grad_norm

TRICK = "`forward` keeps the hidden state"


class WordModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.memory = nn.Embedding(128, 16), nn.LSTM(16, 32, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(32, 128)

    def forward(self, text, state=None):
        hidden, state = self.memory(self.embedding(text), state)
        return self.head(self.dropout(hidden)), state


def cross_entropy(output, target):
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def setup():
    torch.manual_seed(0)
    text = torch.tensor(list(inspect.getsource(inspect).encode()))[: 8 * 480 + 1]
    windows = zip(text[:-1].view(8, -1).split(32, dim=1), text[1:].view(8, -1).split(32, dim=1), strict=True)
    model = WordModel()
    return model, torch.optim.SGD(model.parameters(), lr=1.0), list(windows)


def plain():
    model, optimizer, windows = setup()
    for _ in range(2):
        state = None
        for text, target in windows:
            optimizer.zero_grad()
            output, state = model(text, state)
            state = [part.detach() for part in state]
            cross_entropy(output, target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
    return model


class Carrying:
    """Calls the model with the state after the window before; the state is saved with the training."""

    state = None

    def __call__(self, model, inputs):
        text, begins = inputs
        output, state = model(text, None if begins else self.state)
        self.state = [part.detach() for part in state]
        return output

    def state_dict(self):
        return {"state": self.state}

    def load_state_dict(self, saved):
        self.state = saved["state"]


def machine():
    model, optimizer, windows = setup()
    carrying = Carrying()
    batches = [((text, number == 0), target) for number, (text, target) in enumerate(windows)]
    work = Supervised(model, optimizer, cross_entropy, batches, forward=carrying, extra={"state": carrying})
    run(start(work, epochs=2), [clip_grad_norm(0.25)])
    return model
