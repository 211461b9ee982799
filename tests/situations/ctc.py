"""Texts of unknown alignment by CTC: targets of different lengths, padded, and the error of greedy decoding."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from fsm_train import Supervised, run, start
from fsm_train.callbacks import clip_grad_norm
from tests.models import digits
from tests.situations.common import unshuffled

TRICK = ""


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.GRU(8, 24, batch_first=True, bidirectional=True), nn.Linear(48, 11)

    def forward(self, columns):
        return self.head(self.memory(columns)[0]).log_softmax(dim=-1)


def lines(first, last):
    """Two to four digits beside each other, as a sequence of their columns; 0 is the blank."""
    images, labels = digits(400).tensors
    sizes = torch.randint(2, 5, (last - first,), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        (images[at : at + size].view(size, 8, 8).mT.flatten(0, 1), labels[at : at + size] + 1)
        for at, size in zip(range(first, last), sizes, strict=True)
    ]


def collate(samples):
    columns, labels = zip(*samples, strict=True)
    lengths = (torch.tensor([len(part) for part in parts]) for parts in (columns, labels))
    return pad_sequence(columns, batch_first=True), (pad_sequence(labels, batch_first=True), *lengths)


def setup():
    torch.manual_seed(0)
    model = Reader()
    train = DataLoader(lines(0, 128), batch_size=16, shuffle=True, collate_fn=collate)
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), train, unshuffled(lines(300, 332), 16, collate)


def ctc(scores, target):
    return nn.functional.ctc_loss(scores.transpose(0, 1), *target)


def wrong(scores, target):
    """The share of lines that greedy decoding does not read."""
    labels, lengths, sizes = target
    right = 0
    for best, own, length, size in zip(scores.argmax(dim=-1), labels, lengths, sizes, strict=True):
        read = best[:length].unique_consecutive()
        right += torch.equal(read[read > 0], own[:size])
    return torch.tensor(1 - right / len(labels))


def plain():
    model, optimizer, train, test = setup()
    for _ in range(2):
        model.train()
        for columns, target in train:
            loss = ctc(model(columns), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            error = sum(wrong(model(columns), target).item() for columns, target in test) / len(test)
    return model, error


def machine():
    model, optimizer, train, test = setup()
    work = Supervised(model, optimizer, ctc, train, test, metrics={"wrong": wrong})
    final = run(start(work, epochs=2), [clip_grad_norm(5.0)])
    return model, final.metrics["valid_wrong"]
