# python examples/lbfgs.py: a logistic regression on real data by LBFGS, which evaluates several times in a step.
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import weight_penalty

inputs, target = load_breast_cancer(return_X_y=True)
features = torch.tensor((inputs - inputs.mean(axis=0)) / inputs.std(axis=0), dtype=torch.float32)
malignant = torch.tensor(target, dtype=torch.float32).unsqueeze(1)
train, valid = [(features[:400], malignant[:400])], [(features[400:], malignant[400:])]  # in one batch each
PENALTY, STEPS = 1e-3, 8


class Regression(nn.Linear):
    """A linear model that counts how often it is evaluated on training data."""

    evaluations = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.evaluations += self.training
        return super().forward(inputs)


def model_and_optimizer() -> tuple[Regression, torch.optim.LBFGS]:
    torch.manual_seed(0)
    model = Regression(30, 1)
    return model, torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe")


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return ((output > 0) == (target > 0.5)).float().mean()


loss_fn = nn.BCEWithLogitsLoss()
model, optimizer = model_and_optimizer()
work = Supervised(model, optimizer, loss_fn, train, valid, metrics={"accuracy": accuracy})
final = run(start(work, epochs=STEPS), [weight_penalty(l2=PENALTY)])

plain, optimizer = model_and_optimizer()


def closure() -> Tensor:
    optimizer.zero_grad()
    ((features, malignant),) = train
    loss: Tensor = loss_fn(plain(features), malignant)
    loss = loss + PENALTY * torch.stack([p.square().sum() for p in plain.parameters()]).sum()
    loss.backward()
    return loss


for _ in range(STEPS):
    optimizer.step(closure)

assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True))
assert model.evaluations == plain.evaluations
print(f"valid_accuracy {final.metrics['valid_accuracy']:.3f} after {final.step} steps, {model.evaluations} evaluations")
