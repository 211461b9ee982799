"""Settings of all tests.

One thread, so that sums have one order and the last bit can be compared. Python's own handler for Ctrl-C: a
shell without job control makes the processes that it starts with `&` ignore it. A process that is forked is
not measured for coverage: it ends without saving what it saw.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings

from fsm_train.testing import inspection
from tests.how_long import THOROUGH
from tests.warm_answers import WarmAnswers

settings.register_profile("tests", deadline=None)  # a machine may be busy
settings.load_profile("tests")

pytest_plugins = ["_fsm_train_pytestplugin"]

MEASURES = "COVERAGE_PROCESS_CONFIG"
"""By this a new process knows that it is to measure its coverage."""


@pytest.fixture(autouse=True, scope="session")
def _measured_here() -> str | None:
    """A new process is not measured: that takes half as long again, and nearly all that runs there runs here too."""
    return os.environ.pop(MEASURES, None)


@pytest.fixture
def measured(_measured_here: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new processes of a test are measured, which run what no other test does."""
    if _measured_here is not None:
        monkeypatch.setenv(MEASURES, _measured_here)


def _measures_no_more() -> None:
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]


os.register_at_fork(after_in_child=_measures_no_more)


@pytest.fixture(autouse=True, scope="session")
def _new_processes_are_forked() -> Iterator[None]:
    with WarmAnswers() as warm, pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "answers_in_new_processes", warm)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_handled() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has no few cases to try, or whose processes take many seconds, is tried among the long tests alone.

    Long tests try many cases of what other tests reach: they are not measured for coverage.
    """
    for item in items:
        if any(mark.kwargs.get("alone") for mark in item.iter_markers("long")) and not THOROUGH:
            item.add_marker(pytest.mark.skip(reason="tried where FSM_TRAIN_LONG is set"))
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.unmeasured)


def pytest_collection_finish() -> None:
    """No collection of garbage looks through torch and thousands of tests again, which takes a third of a second."""
    gc.freeze()
