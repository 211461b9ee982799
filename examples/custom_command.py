# python examples/custom_command.py: a command of one's own, the max-norm constraint, at a large rate on real digits.
from fnmatch import fnmatchcase

import attrs
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fsm_train import Callback, Command, Phase, State, Supervised, Transition, carries_out, on, run, start
from fsm_train.testing import at


@attrs.frozen
class MaxNorm(Command):
    """Scale down each row of the matching weights, which feeds one unit, to at most this norm."""

    pattern: str
    limit: float


@carries_out(MaxNorm)
def shorten_rows(work: Supervised, command: MaxNorm) -> None:
    with torch.no_grad():
        for name, weight in work.model.named_parameters():
            if fnmatchcase(name, command.pattern):
                weight.renorm_(p=2, dim=0, maxnorm=command.limit)


def max_norm(pattern: str, limit: float) -> Callback[None]:
    """Keep the rows of weights short: Srivastava et al., "Dropout" (2014), who could so raise the learning rate."""
    shorten = Transition(commands=(MaxNorm(pattern, limit),))

    # Before others at STEP_END, so that an average of the weights takes in the short ones.
    @on(Phase.STEP_END, order=-10, commands={MaxNorm})
    def max_norm(state: State) -> Transition:
        return shorten

    return max_norm


# What it decides is data, and is tested as such: no model, and nothing is carried out.
assert max_norm("*.weight", 1.0)(at(Phase.STEP_END)) == Transition(commands=(MaxNorm("*.weight", limit=1.0),))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def trained_with(*callbacks: Callback[None]) -> tuple[float, float]:
    """The norm of the longest row of weights, and the accuracy on held-out digits."""
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    train, valid = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10)),
    )
    work = Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(),
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(valid, batch_size=360),
        metrics={"accuracy": accuracy},
    )
    final = run(start(work, epochs=15, seed=0), callbacks)
    longest = max(weight.norm(dim=1).max().item() for name, weight in model.named_parameters() if "weight" in name)
    return longest, final.metrics["valid_accuracy"]


def main() -> None:
    for name, callbacks in (("without", ()), ("max_norm", (max_norm("*.weight", 1.0),))):
        longest, valid_accuracy = trained_with(*callbacks)
        print(f"{name:<8}  longest row {longest:.4f}  valid_accuracy {valid_accuracy:.3f}")


if __name__ == "__main__":
    main()
