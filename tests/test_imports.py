"""The pure half does without torch, and the package is there at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fsm_train

PURE = [
    "fsm_train",
    "fsm_train.callbacks",
    "fsm_train.ablation",
    "fsm_train.cli",
    "fsm_train.core.diagram",
    "fsm_train.eventlog",
    "fsm_train.interpreter",
    "fsm_train.lr_finder",
    "fsm_train.schedules",
    "fsm_train.sinks",
    "fsm_train.testing",
    "fsm_train.checkpoints.manifest",
    "fsm_train.eventlog.recorded",
    "fsm_train.encoding",
    "fsm_train.wording",
    "fsm_train.worlds.scripted",
]


@pytest.mark.parametrize("module", PURE)
def test_pure_half_imports_without_torch(module: str) -> None:
    """With torch made unimportable, the module is imported all the same."""
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_brings_nothing_heavy() -> None:
    """Neither torch nor what only sinks and logs use is imported along the way."""
    code = "import sys, fsm_train; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {"torch", "numpy", "rich", "structlog", "cattrs", "orjson", "hypothesis"}.isdisjoint(loaded)


def test_every_public_name_is_there() -> None:
    """What `__all__` says can be had, also the names that are loaded when first used."""
    assert [name for name in fsm_train.__all__ if not hasattr(fsm_train, name)] == []
    assert set(fsm_train.__all__) <= set(dir(fsm_train))
    with pytest.raises(AttributeError, match="module 'fsm_train' has no attribute 'nonsense'"):
        fsm_train.nonsense  # noqa: B018
