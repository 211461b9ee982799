# python examples/nanogpt.py: a tiny GPT learns to write Python from the standard library, trained as by nanoGPT.
import inspect
import tempfile
from itertools import count

import torch
from torch import nn

from fsm_train import Evaluation, Supervised, load_weights, run, start
from fsm_train.callbacks import accumulate, checkpoint, clip_grad_norm, schedule, validate_every
from fsm_train.schedules import cosine, warmup

STEPS, BLOCK, RATE = 300, 32, warmup(20).then(cosine(280, floor=0.1))
TRAIN, VAL = torch.tensor(list(inspect.getsource(inspect).encode("ascii", "replace"))).tensor_split([100_000])


class Windows:
    """Random windows of a text, and the same windows one character on: without end, or so many batches."""

    def __init__(self, text, batches=None):
        self.text, self.batches = text, batches

    def __iter__(self):
        for _ in count() if self.batches is None else range(self.batches):
            at = torch.randint(len(self.text) - BLOCK, (16, 1)) + torch.arange(BLOCK)
            yield self.text[at], self.text[at + 1]


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.TransformerEncoderLayer(64, 4, 256, 0.1, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(64), enable_nested_tensor=False)
        self.tokens, self.places = (nn.Parameter(0.02 * torch.randn(size, 64)) for size in (128, BLOCK))

    def forward(self, text):
        causal = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        hidden = self.blocks(self.tokens[text] + self.places[: text.shape[1]], causal, is_causal=True)
        return hidden @ self.tokens.T  # tied


torch.manual_seed(0)
model = GPT()
decayed, others = ([p for p in model.parameters() if (p.dim() > 1) is matrix] for matrix in (True, False))
groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95))
splits = {name: Evaluation(Windows(text, 8), seed=1) for name, text in (("train", TRAIN), ("val", VAL))}
cross_entropy = nn.CrossEntropyLoss()
work = Supervised(model, optimizer, lambda logits, target: cross_entropy(logits.mT, target), Windows(TRAIN), splits)
callbacks = [accumulate(2), clip_grad_norm(1.0), schedule(lr=RATE), validate_every(steps=60, first=True)]
with tempfile.TemporaryDirectory() as folder:
    run(start(work, max_steps=STEPS, seed=0), [*callbacks, checkpoint(folder, monitor="valid_val_loss")])
    loaded = load_weights(folder, best := GPT().eval())

print(f"best at step {loaded['step']}: {loaded['metrics']}")
text = torch.tensor([list(b"def ")])
while text.shape[1] < 200:
    text = torch.cat([text, best(text[:, -BLOCK:])[:, -1].softmax(-1).multinomial(1)], dim=1)
print(bytes(text[0].tolist()).decode())
