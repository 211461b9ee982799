# python examples/dpo.py: a model that draws digits learns from pairs of them that bold ones are preferred.
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import Supervised, run, start

EPOCHS = 3
images = torch.tensor(load_digits().data).long() // 4  # each a text of 64 words, which are shades from 0 to 4
bold, thin = images[images.sum(dim=1).argsort(descending=True)][:1796].chunk(2)  # with more ink, and with less
known, unseen = random_split(TensorDataset(bold, thin), [698, 200], torch.Generator().manual_seed(0))


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.memory, self.head = nn.Embedding(6, 32), nn.GRU(32, 64, batch_first=True), nn.Linear(64, 5)

    def forward(self, texts):
        before = self.words(nn.functional.pad(texts[:, :-1], (1, 0), value=5))
        scores = self.head(self.memory(before)[0]).log_softmax(dim=-1)
        return scores.gather(-1, texts[:, :, None]).sum(dim=(1, 2))  # the log-probability of each text


def preference(own, of_reference):
    """Rafailov et al., "Direct Preference Optimization" (2023); and how often the chosen one has gained more."""
    chosen, rejected = (mine - its for mine, its in zip(own, of_reference, strict=True))
    loss = -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    return {"loss": loss, "right": (chosen > rejected).float().mean()}


torch.manual_seed(0)
reference = Policy()
optimizer, texts = torch.optim.Adam(reference.parameters(), lr=1e-2), [(some, None) for some in images.split(64)]
run(start(Supervised(reference, optimizer, lambda scores, _: -scores.mean(), texts), epochs=3))
policy, plain = (copy.deepcopy(reference) for _ in range(2))
reference.requires_grad_(False)

optimizer, pairs = torch.optim.Adam(policy.parameters(), lr=1e-3), DataLoader(known, 64)
work = Supervised(
    *(policy, optimizer, lambda output, _: preference(*output), pairs, DataLoader(unseen, 100)),
    split=lambda pair: (pair, None),
    samples=lambda pair, _: len(pair[0]),
    forward=lambda policy, pair: [[model(texts) for texts in pair] for model in (policy, reference)],
)
final = run(start(work, epochs=EPOCHS))

optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
for pair in [*pairs] * EPOCHS:
    preference([plain(texts) for texts in pair], [reference(texts) for texts in pair])["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
assert all(torch.equal(*both) for both in zip(policy.parameters(), plain.parameters(), strict=True))
print(f"the policy prefers as it was told in {final.metrics['valid_right']:.0%} of unseen pairs")
