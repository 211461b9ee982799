"""The pytest plugin of fsm_train: fixtures, and states that are compared field by field.

It imports nothing heavy until something of it is used: pytest loads it wherever the package is
installed, and whoever uses none of it should hardly notice.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..worlds.scripted import Scripted


@pytest.fixture
def scripted() -> Scripted:
    """A workload without a model: three batches an epoch, a loss and metrics that get better, and no end of them.

    It has what `tiny_supervised` has, so that a test can be tried on both.
    """
    from ..worlds.scripted import Scripted

    return Scripted(
        batches=3,
        batch_size=50,
        loss=lambda state: 1.0 / (1 + state.iteration),
        valid_batches=1,
        valid_loss=lambda state: 1.0 / (1 + state.epoch),
        valid_accuracy=lambda state: 1.0 - 0.5 / (1 + state.epoch),
        hyper={"lr": 0.05, "momentum": 0.9},
    )


@pytest.fixture
def tiny_supervised() -> Any:
    """A real small model on real data: softmax regression of three kinds of iris; skipped without torch.

    Three batches of 40 flowers an epoch, 30 others to validate with, and SGD with momentum.
    """
    torch: Any = pytest.importorskip("torch")
    from .iris import FLOWERS

    # By name, since nothing of this half of the package may import the one with torch.
    supervised = pytest.importorskip("fsm_train.supervised.workload")

    flowers = torch.tensor(FLOWERS, dtype=torch.float32)
    inputs, kinds = (flowers[:, :4] - flowers[:, :4].mean(0)) / flowers[:, :4].std(0), flowers[:, 4].long()
    order = torch.randperm(len(flowers), generator=torch.Generator().manual_seed(0))
    batches = [(inputs[some], kinds[some]) for some in order[:120].split(40)]
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    return supervised.Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        torch.nn.CrossEntropyLoss(),
        batches,
        [(inputs[order[120:]], kinds[order[120:]])],
        metrics={"accuracy": lambda output, target: (output.argmax(dim=1) == target).float().mean()},
    )


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Of two states that should be equal, the fields that differ."""
    state = getattr(sys.modules.get("fsm_train"), "State", None)
    if op != "==" or state is None or not (isinstance(left, state) and isinstance(right, state)):
        return None
    from .differences import differences

    lines = list(differences(left, right, exactly=False))
    return [f"a state at {left.phase.value} == a state at {right.phase.value}", "These fields differ:", *lines]
