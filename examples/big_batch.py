# python examples/big_batch.py: a batch of 512 by accumulation of 8 small ones trains as a real one of 512 does.
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fsm_train import Callback, Supervised, run, start
from fsm_train.callbacks import accumulate

DIGITS = 1437  # of which an epoch makes two batches of 512, and one of the leftover 413
UNEQUAL = (1, 7, 20, 36, 64, 96, 128, 160)


def trained(sizes: list[int], *callbacks: Callback[float]) -> Tensor:
    """The weights after 20 epochs of the same digits in the same order, in batches of these sizes."""
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))[:DIGITS]
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    work = Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(),
        list(zip(images.split(sizes), labels.split(sizes), strict=True)),
        sensors={"one": lambda work: 1.0},
    )
    final = run(start(work, epochs=20), callbacks)
    assert final.step == 20 * 3
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def main() -> None:
    real = trained([512, 512, 413])
    equal = [64] * 22 + [29]
    unequal = [*UNEQUAL, *UNEQUAL, *UNEQUAL[:7], 61]
    for name, weights in {
        "8 of 64": trained(equal, accumulate(8)),
        "8 unequal ones": trained(unequal, accumulate(8)),
        # What a loop does that divides each loss by 8: right only if all batches have one size.
        "8 unequal ones, each counted alike": trained(unequal, accumulate(8, weight="one")),
    }.items():
        print(f"{name:<36}largest difference of a weight {(weights - real).abs().max():.1e}")


if __name__ == "__main__":
    main()
