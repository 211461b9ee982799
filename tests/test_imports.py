"""The pure half does without torch, and the package is there at once."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from types import ModuleType

import pytest

import fsm_train.commands
import fsm_train.diagnosis
import fsm_train.eventlog
import fsm_train.sinks
from fsm_train import Command
from fsm_train.core import commands as core_commands

PURE = [
    "fsm_train",
    "fsm_train.callbacks",
    "fsm_train.ablation",
    "fsm_train.cli",
    "fsm_train.commands",
    "fsm_train.core.diagram",
    "fsm_train.diagnosis.api",
    "fsm_train.eventlog",
    "fsm_train.interpreter",
    "fsm_train.lr_finder",
    "fsm_train.schedules",
    "fsm_train.sinks",
    "fsm_train.testing",
    "fsm_train.checkpoints.choice",
    "fsm_train.checkpoints.state_json",
    "fsm_train.checkpoints.summary",
    "fsm_train.checkpoints.manifest",
    "fsm_train.eventlog.recorded",
    "fsm_train.encoding",
    "fsm_train.view.answers",
    "fsm_train.worlds.registry",
    "fsm_train.wording",
    "fsm_train.worlds.scripted",
]

FORMER = [
    *("TABLE", "UNCHANGED", "Ablation", "ClipGradNorm", "Difference", "Divergence", "Edge", "Facts", "LrFound"),
    *("Operation", "Recorded", "Replayed", "Scripted", "WeighLoss", "WhatIf"),
    *("ablate", "diff", "find_lr", "read_log", "sweep"),
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

    assert {"torch", "numpy", "rich", "structlog", "orjson", "hypothesis"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    "module", [fsm_train, fsm_train.commands, fsm_train.diagnosis, fsm_train.eventlog, fsm_train.sinks]
)
def test_every_public_name_is_there(module: ModuleType) -> None:
    """What `__all__` says can be had, also the names that are loaded when first used."""
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("name", FORMER)
def test_names_with_a_better_home_are_still_importable(name: str) -> None:
    """A name that left `__all__` can be imported from the package as before."""
    assert name not in fsm_train.__all__
    assert name in dir(fsm_train)
    assert hasattr(fsm_train, name)


def test_commands_are_all_of_them() -> None:
    """Each command of the core is public in `fsm_train.commands`."""
    core = {
        name
        for name, value in vars(core_commands).items()
        if isinstance(value, type) and issubclass(value, Command) and name != "LeavesOptimizer"
    }

    assert set(fsm_train.commands.__all__) == {*core, "carries_out"}


def test_version_is_that_of_the_distribution() -> None:
    """`fsm_train.__version__` is the version that is installed."""
    assert fsm_train.__version__ == importlib.metadata.version("fsm-train")
