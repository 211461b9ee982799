# python examples/gan.py: two networks take turns: one learns to draw digits, the other to tell them from real ones.
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Alternating, Player, run, start

NOISE = 16
digits = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 8 - 1


class Gan:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.data = DataLoader(TensorDataset(digits, torch.zeros(len(digits))), batch_size=64, shuffle=True)
        self.G = nn.Sequential(nn.Linear(NOISE, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh())
        self.D = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1), nn.Flatten(0))
        self.d_optimizer = torch.optim.Adam(self.D.parameters(), lr=1e-3, betas=(0.5, 0.999))
        self.g_optimizer = torch.optim.Adam(self.G.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def draw(self, samples: int) -> torch.Tensor:
        return self.G(torch.randn(samples, NOISE))

    def told_apart(self, real: torch.Tensor, _: torch.Tensor) -> dict[str, torch.Tensor]:
        on_real = bce(self.D(real), torch.ones(len(real)))
        on_drawn = bce(self.D(self.draw(len(real)).detach()), torch.zeros(len(real)))
        return {"loss": on_real + on_drawn, "real": on_real, "drawn": on_drawn}

    def fooled(self, real: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return bce(self.D(self.draw(len(real))), torch.ones(len(real)))

    def gap(self) -> float:
        """How far the mean of what is drawn is from the mean digit."""
        return (copy.deepcopy(self).draw(1000).mean(dim=0) - digits.mean(dim=0)).abs().mean().item()


by_hand, gan = Gan(), Gan()
print(f"before  gap {gan.gap():.3f}")
torch.manual_seed(1)
for _ in range(6):
    for real, target in by_hand.data:
        by_hand.d_optimizer.zero_grad()
        by_hand.told_apart(real, target)["loss"].backward()
        by_hand.d_optimizer.step()
        by_hand.g_optimizer.zero_grad()
        by_hand.fooled(real, target).backward()
        by_hand.g_optimizer.step()

D, G = Player(gan.D, gan.d_optimizer, gan.told_apart), Player(gan.G, gan.g_optimizer, gan.fooled)
final = run(start(Alternating({"D": D, "G": G}, gan.data), epochs=6, seed=1))
for ours, plain in ((gan.G, by_hand.G), (gan.D, by_hand.D)):
    assert all(map(torch.equal, ours.state_dict().values(), plain.state_dict().values())), "not the plain loop"
print(f"after   gap {gan.gap():.3f}  steps of G {final.steps_of('G')}")
print("  ".join(f"{name} {value:.3f}" for name, value in final.metrics.items()))
