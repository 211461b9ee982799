"""The pytest plugin of fsm_train: two fixtures, and states that are compared field by field.

pytest loads this module in every run where the package is installed. So it stands outside the package, and
imports nothing of it until a test asks for a fixture.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fsm_train import Supervised
    from fsm_train.worlds.scripted import Scripted


@pytest.fixture
def scripted() -> Scripted:
    """A workload without a model: three batches an epoch, a loss and metrics that improve for ever.

    It has what `tiny_supervised` has, so that a test can run on both.
    """
    from fsm_train.testing.workloads import scripted

    return scripted()


@pytest.fixture
def tiny_supervised() -> Supervised:
    """A real small model on real data: softmax regression of three kinds of iris. Skipped without torch.

    Three batches of 40 flowers an epoch, 30 others for validation, and SGD with momentum.
    """
    pytest.importorskip("torch")
    from fsm_train.testing.workloads import tiny_supervised

    work: Supervised = tiny_supervised()
    return work


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """The fields that differ, of two states that should be equal."""
    module = sys.modules.get("fsm_train.core.state")
    if op != "==" or module is None or not (isinstance(left, module.State) and isinstance(right, module.State)):
        return None
    from fsm_train.testing.differences import differences

    lines = list(differences(left, right, exactly=False))
    return [f"a state at {left.phase.value} == a state at {right.phase.value}", "These fields differ:", *lines]
