# python examples/char_lm.py: a small GRU learns to write Python from the standard library, and beats a trigram model.
import argparse
import os
import sys
from collections.abc import Iterator
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import clip_grad_norm, schedule
from fsm_train.schedules import one_cycle
from fsm_train.sinks import progress

TRAIN = ("argparse", "ast", "configparser", "dataclasses", "difflib", "inspect")
UNSEEN = ("mailbox", "shutil")  # kept from both models
SYMBOLS = 128  # of ASCII


def read(modules: tuple[str, ...]) -> Tensor:
    """The source of these modules of the standard library, as one long vector of character codes."""
    folder = Path(os.__file__).parent
    text = "".join((folder / f"{module}.py").read_text("utf-8") for module in modules)
    return torch.frombuffer(bytearray(text, "ascii", "replace"), dtype=torch.uint8).long()


class Carried:
    """The hidden state after the window before; None at the beginning of a text."""

    state: Tensor | None = None


class Streams:
    """A text as parallel streams, in windows: each batch goes on where the one before stopped.

    The hidden state belongs to the pass: an epoch begins without one, and so does a validation,
    which leaves that of the training alone even in the middle of an epoch. A checkpoint has it, with the place.
    """

    def __init__(self, text: Tensor, streams: int, window: int) -> None:
        used = (len(text) - 1) // (streams * window) * streams * window
        self.inputs = text[:used].view(streams, -1).split(window, dim=1)
        self.targets = text[1 : used + 1].view(streams, -1).split(window, dim=1)
        self.place, self.carried = 0, Carried()
        self.resumes = False

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Carried], Tensor]]:
        if not self.resumes:
            self.place, self.carried = 0, Carried()
        self.resumes = False
        while self.place < len(self):
            self.place += 1
            yield (self.inputs[self.place - 1], self.carried), self.targets[self.place - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "state": self.carried.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.place, self.carried, self.resumes = saved["place"], Carried(), True
        self.carried.state = saved["state"]

    def __len__(self) -> int:
        return len(self.inputs)


class CharacterModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 32)
        self.memory = nn.GRU(32, 128, batch_first=True)
        self.head = nn.Linear(128, SYMBOLS)

    def forward(self, text: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, state = self.memory(self.embedding(text), state)
        return self.head(hidden), state


def carry_on(model: nn.Module, inputs: tuple[Tensor, Carried]) -> Tensor:
    """The output, going on from the window before; gradients do not: truncated backpropagation through time."""
    text, carried = inputs
    output, state = model(text, carried.state)
    carried.state = state.detach()
    return output


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def trigram_perplexity(text: Tensor, unseen: Tensor) -> float:
    """Of the counts, with interpolated Kneser-Ney smoothing: a trigram model hardly gets any better."""

    def smoothed(counts: Tensor, shorter: Tensor, discount: float = 0.75) -> Tensor:
        total, kinds = counts.sum(-1, keepdim=True), (counts > 0).sum(-1, keepdim=True)
        found = ((counts - discount).clamp(min=0) + discount * kinds * shorter) / total.clamp(min=1)
        return torch.where(total > 0, found, shorter)

    places = (text[:-2] * SYMBOLS + text[1:-1]) * SYMBOLS + text[2:]
    three = places.bincount(minlength=SYMBOLS**3).view(SYMBOLS, SYMBOLS, SYMBOLS)
    two = (three > 0).sum(0)
    one = (two > 0).sum(0)
    model = smoothed(three, smoothed(two, smoothed(one, torch.full((SYMBOLS,), 1 / SYMBOLS))))
    return exp(-model[unseen[:-2], unseen[1:-1], unseen[2:]].log().mean())


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--max-norm", type=float, default=0.1, help="of the gradient; with 1e9 it is not clipped")
    given = options.parse_args()

    torch.set_num_threads(1)  # more would hardly help a model this small, and hurt where cores are shared
    text, unseen = read(TRAIN), read(UNSEEN)
    train = Streams(text, streams=16, window=64)
    torch.manual_seed(0)
    model = CharacterModel()
    work = Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=4.0, momentum=0.9),  # far too large without clipping
        cross_entropy,
        train,
        Streams(unseen, streams=16, window=64),
        forward=carry_on,
    )
    final = run(
        start(work, epochs=given.epochs, seed=0),
        [clip_grad_norm(given.max_norm), schedule(lr=one_cycle(given.epochs * len(train)))],
        sinks=[progress()],
    )

    ours, trigram = exp(final.metrics["valid_loss"]), trigram_perplexity(text, unseen)
    print(f"perplexity on unseen modules: {ours:.2f}, of a trigram model {trigram:.2f}")
    if not ours < trigram:  # nor is it NaN
        sys.exit("the trigram model is at least as good")


if __name__ == "__main__":
    main()
