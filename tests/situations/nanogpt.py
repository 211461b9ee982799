"""A tiny GPT as by nanoGPT: endless windows, micro-steps, warm-up and cosine, decay groups, losses of two splits."""

import inspect
import math
from itertools import islice

import torch
from torch import nn

from fsm_train import Evaluation, Supervised, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, schedule, validate_every
from fsm_train.schedules import cosine, warmup

TRICK = ""
TEXT = torch.tensor(list(inspect.getsource(inspect).encode()))


class Windows:
    """Random windows of a text, and the same one character on: without end, or so many batches.

    One does not depend on those before: that it has a state, in which there is nothing, says so.
    """

    def __init__(self, text, batches=None):
        self.text, self.batches = text, batches

    def __iter__(self):
        return islice(iter(self.draw, None), self.batches)

    def draw(self):
        at = torch.randint(len(self.text) - 16, (8, 1)) + torch.arange(16)
        return self.text[at], self.text[at + 1]

    def state_dict(self):
        return {}

    def load_state_dict(self, saved):
        """It goes on with the next batch."""


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.TransformerEncoderLayer(32, 2, 64, 0.1, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 1, nn.LayerNorm(32), enable_nested_tensor=False)
        self.tokens, self.places = nn.Embedding(128, 32), nn.Parameter(0.02 * torch.randn(16, 32))

    def forward(self, text):
        causal = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        hidden = self.blocks(self.tokens(text) + self.places, causal, is_causal=True)
        return hidden @ self.tokens.weight.T


def cross_entropy(logits, target):
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def setup():
    torch.manual_seed(0)
    model = GPT()
    decayed, others = ([p for p in model.parameters() if (p.dim() >= 2) is wanted] for wanted in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)), TEXT[:-2000], TEXT[-2000:]


def plain():
    model, optimizer, train, val = setup()
    batches = iter(Windows(train))
    for step in range(24):
        rate = 1e-2 * min(0.01 + 0.99 * step / 4, 1.0)
        if step > 4:
            rate = 1e-2 * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - 4) / 20)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(2):
            text, target = next(batches)
            loss = cross_entropy(model(text), target) / 2
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 8 == 0:
            model.eval()
            generator, losses = torch.get_rng_state(), {}
            with torch.no_grad():
                for split, data in (("train", train), ("val", val)):
                    torch.manual_seed(1)
                    losses[split] = sum(cross_entropy(model(x), y).item() for x, y in Windows(data, 4)) / 4
            torch.set_rng_state(generator)
            model.train()
    return model, losses["train"], losses["val"]


def machine():
    model, optimizer, train, val = setup()
    splits = {name: Evaluation(Windows(text, 4), seed=1) for name, text in (("train", train), ("val", val))}
    work = Supervised(model, optimizer, cross_entropy, Windows(train), splits)
    rate = schedule(lr=warmup(4).then(cosine(20, floor=0.1)))
    callbacks = [accumulate(2), clip_grad_norm(1.0), rate, validate_every(steps=8)]
    final = run(start(work, max_steps=24), callbacks)
    return model, final.metrics["valid_train_loss"], final.metrics["valid_val_loss"]
