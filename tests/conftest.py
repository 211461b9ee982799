"""What all tests share.

One thread, so that sums are taken in one order and the last bit can be compared. And Python's own
handler for Ctrl-C, which a shell without job control sets to be ignored in what it starts with `&`.
"""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["_fsm_train_pytestplugin"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
