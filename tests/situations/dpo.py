"""DPO: a policy learns from pairs of a chosen and a rejected answer, held near a frozen reference."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start
from fsm_train.callbacks import clip_grad_norm

TRICK = ""


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.memory, self.head = (
            nn.Embedding(20, 16),
            nn.GRU(16, 16, batch_first=True),
            nn.Linear(16, 20),
        )

    def forward(self, tokens):
        """The log-probability of each text."""
        scores = self.head(self.memory(self.embedding(tokens[:, :-1]))[0]).log_softmax(dim=-1)
        return scores.gather(-1, tokens[:, 1:, None]).sum(dim=(1, 2))


def setup():
    torch.manual_seed(0)
    chosen, rejected = torch.randint(20, (2, 96, 12)).sort(dim=-1).values
    policy = Policy()
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    train = DataLoader(TensorDataset(chosen, rejected.flip(-1)), batch_size=16, shuffle=True)
    return policy, reference, torch.optim.RMSprop(policy.parameters(), lr=1e-3), train


def preference(own, of_reference, beta=0.1):
    chosen, rejected = (beta * (mine - its) for mine, its in zip(own, of_reference, strict=True))
    loss = -nn.functional.logsigmoid(chosen - rejected).mean()
    return {"loss": loss, "margin": (chosen - rejected).mean(), "right": (chosen > rejected).float().mean()}


def plain():
    policy, reference, optimizer, train = setup()
    for _ in range(2):
        right = 0.0
        for pair in train:
            with torch.no_grad():
                of_reference = [reference(texts) for texts in pair]
            losses = preference([policy(texts) for texts in pair], of_reference)
            optimizer.zero_grad()
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
            optimizer.step()
            right += losses["right"].item() / len(train)
    return policy, reference, right


def machine():
    policy, reference, optimizer, train = setup()
    work = Supervised(
        *(policy, optimizer, lambda output, _: preference(*output), train),
        split=lambda pair: (pair, None),
        samples=lambda pair, _: len(pair[0]),
        forward=lambda policy, pair: [[model(texts) for texts in pair] for model in (policy, reference)],
    )
    final = run(start(work, epochs=2), [clip_grad_norm(10.0)])
    return policy, reference, final.metrics["train_right"]
