"""What all tests share: one thread, so that sums are taken in one order and the last bit can be compared."""

from __future__ import annotations

import pytest

pytest_plugins = ["fsm_train.testing.plugin"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
