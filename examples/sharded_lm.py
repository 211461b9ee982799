# torchrun --nproc-per-node 2 examples/sharded_lm.py: a model of Python source, of which each process holds half.
# The same script under python trains it whole, to the same perplexity. With a folder behind it, it goes on from there.
import os
import sys
from collections.abc import Iterator
from math import exp
from pathlib import Path

import torch
from torch import Tensor, nn

from fsm_train import Supervised, restore, run, start
from fsm_train.callbacks import checkpoint, clip_grad_norm, ema, schedule
from fsm_train.schedules import one_cycle

RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
WINDOW, BATCH, WIDTH, SYMBOLS = 64, 32, 64, 128


class Windows:
    """This process's rows of each batch: windows of text, and the same ones a character later."""

    def __init__(self, *modules: str) -> None:
        source = "".join((Path(os.__file__).parent / f"{module}.py").read_text("utf-8") for module in modules)
        text = torch.frombuffer(bytearray(source, "ascii", "replace"), dtype=torch.uint8).long()
        self.inputs = text[: (len(text) - 1) // WINDOW * WINDOW].view(-1, WINDOW)
        self.targets = text[1 : self.inputs.numel() + 1].view(-1, WINDOW)

    def __len__(self) -> int:
        return len(self.inputs) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(0))
        for batch in order.split(BATCH)[: len(self)]:
            yield self.inputs[batch[RANK::RANKS]], self.targets[batch[RANK::RANKS]]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(WINDOW, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2).layers  # a list, whose parts are sharded one by one
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, text: Tensor) -> Tensor:
        hidden, mask = self.embed(text) + self.places.weight, nn.Transformer.generate_square_subsequent_mask(WINDOW)
        for layer in self.layers:
            hidden = layer(hidden, mask, is_causal=True)
        return self.head(hidden).transpose(1, 2).contiguous()  # type: ignore[no-any-return]


torch.manual_seed(0)
train, optimizer = Windows("argparse", "inspect"), lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3)
work = Supervised(Transformer(), optimizer, nn.CrossEntropyLoss(), train, Windows("shutil"), parallel="fsdp")
saves = [checkpoint(folder, every_steps=20) for folder in sys.argv[1:]]  # each process writes what it holds
goes_on = saves and any(Path(sys.argv[1]).glob("*/manifest"))
state = restore(sys.argv[1], work) if goes_on else start(work, epochs=1, seed=0)
final = run(state, [schedule(lr=one_cycle(len(train))), clip_grad_norm(1.0), ema(0.9), *saves])
if RANK == 0:
    held = sum(getattr(parameter, "_local_tensor", parameter).numel() for parameter in work.model.parameters())
    print(f"perplexity {exp(final.metrics['valid_loss']):.4f} after {final.step} steps; {held:,} parameters here")
