"""How long to look: `dev` for every commit, `thorough` before a release.

Nothing here is measured for coverage: what is drawn reaches a branch or does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fsm_train.testing import inspection
from tests.warm_answers import WarmAnswers

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile(
    "thorough",
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True, scope="session")
def _new_processes_are_forked() -> Iterator[None]:
    with WarmAnswers() as warm, pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "answers_in_new_processes", warm)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.unmeasured)
