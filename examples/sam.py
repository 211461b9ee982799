# python examples/sam.py: sharpness-aware minimization on real digits: each step has the gradient of a worse place.
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import schedule
from fsm_train.schedules import cosine


class Sam(torch.optim.SGD):
    """Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (2021)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        assert closure is not None, "write Supervised(…, closure=True)"
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm, before = nn.utils.get_total_norm([p.grad for p in parameters]), [p.clone() for p in parameters]
        for p in parameters:
            p.add_(0.05 * p.grad / norm)
        torch.enable_grad()(closure)()
        for p, values in zip(parameters, before, strict=True):
            p.copy_(values)
        super().step()


images, labels = load_digits(return_X_y=True)
inputs, target = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train = list(zip(inputs[:1408].split(64), target[:1408].split(64), strict=True))
valid = [(inputs[1408:], target[1408:])]


def model_and_optimizer() -> tuple[nn.Module, Sam]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, Sam(model.parameters(), lr=0.2, momentum=0.9)


loss_fn, rate = nn.CrossEntropyLoss(), cosine(20 * len(train))
model, optimizer = model_and_optimizer()
work = Supervised(model, optimizer, loss_fn, train, valid, closure=True)
final = run(start(work, epochs=20), [schedule(lr=rate)])

plain, optimizer = model_and_optimizer()
for i, batch in enumerate(train * 20):

    def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_fn(plain(batch[0]), batch[1])
        loss.backward()
        return loss

    optimizer.param_groups[0]["lr"] = 0.2 * rate(i)
    closure()
    optimizer.step(closure)
assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True))
print(f"valid_loss {final.metrics['valid_loss']:.3f} after {final.step} steps, as in the plain loop")
