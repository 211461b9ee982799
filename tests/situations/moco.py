"""MoCo: keys by an encoder that follows with momentum, and a queue of the last keys."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Supervised, run, start, weights
from fsm_train.callbacks import ema
from tests.situations.simclr import Views

TRICK = "`forward` changes the queue"


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    queue = nn.functional.normalize(torch.randn(128, 16), dim=1)
    train = DataLoader(Views(), batch_size=32, shuffle=True)
    return model, queue, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), train


def contrastive(query, key, queue):
    query = nn.functional.normalize(query, dim=1)
    like, unlike = (query * key).sum(dim=1, keepdim=True), query @ queue.T
    return nn.functional.cross_entropy(torch.cat([like, unlike], dim=1) / 0.2, torch.zeros(len(query)).long())


def plain():
    model, queue, optimizer, train = setup()
    encoder, place = copy.deepcopy(model), 0
    for _ in range(2):
        for (one, other), _ in train:
            query = model(one)
            with torch.no_grad():
                key = nn.functional.normalize(encoder(other), dim=1)
            loss = contrastive(query, key, queue.clone())
            queue[place : place + 32] = key
            place = (place + 32) % 128
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(encoder.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 1 - 0.99)
    return model, queue


class Queue:
    """The last keys, and where the next ones go: saved with the training."""

    def __init__(self, keys):
        self.keys, self.place = keys, 0

    def put(self, keys):
        before = self.keys.clone()
        self.keys[self.place : self.place + 32] = keys
        self.place = (self.place + 32) % 128
        return before

    def state_dict(self):
        return {"keys": self.keys, "place": self.place}

    def load_state_dict(self, state):
        self.keys, self.place = state["keys"], state["place"]


def machine():
    model, keys, optimizer, train = setup()
    queue = Queue(keys)

    def against_queue(model, views):
        query = model(views[0])
        with weights(work, "encoder"):
            key = nn.functional.normalize(model(views[1]), dim=1)
        return query, key, queue.put(key)

    loss = lambda output, labels: contrastive(*output)
    work = Supervised(model, optimizer, loss, train, forward=against_queue, extra={"queue": queue})
    run(start(work, epochs=2), [ema(0.99, initial=True, validate=False, name="encoder")])
    return model, queue.keys
