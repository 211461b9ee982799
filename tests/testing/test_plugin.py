"""The pytest plugin: its fixtures, and what a failing assertion about states shows."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Phase, run, start
from fsm_train.callbacks import clip_grad_norm, early_stopping
from fsm_train.core.workload import Workload
from fsm_train.testing import Trace, at

ROOT = Path(__file__).parents[2]
PLUGIN = ["-p", "_fsm_train_pytestplugin", "-p", "no:cacheprovider", "-q"]


def pytest_in(folder: Path, code: str, *arguments: str, python: str = "") -> str:
    """What pytest prints of a file with this code, in a process of its own, with the plugin alone."""
    (folder / "test_it.py").write_text(code)
    run_it = f"{python}import sys, pytest; sys.exit(pytest.main({[*PLUGIN, *arguments]!r}))"
    environment = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", run_it], capture_output=True, text=True, cwd=folder, env=environment)
    return done.stdout + done.stderr


def test_plugin_is_registered() -> None:
    """The entry point names the plugin, and the wheel contains it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["project"]["entry-points"]["pytest11"] == {"fsm_train": "_fsm_train_pytestplugin"}
    assert "_fsm_train_pytestplugin.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]


@pytest.mark.parametrize("fixture", ["scripted", "tiny_supervised"])
def test_both_workloads_can_be_trained(fixture: str, request: pytest.FixtureRequest) -> None:
    """The scripted workload and the real one have the same shape, and get better in a few epochs."""
    work: Workload = request.getfixturevalue(fixture)
    trace = Trace()
    final = run(start(trace.watching(work), epochs=4), [clip_grad_norm(1.0), early_stopping()], sinks=[trace])

    assert (final.phase, final.step, final.epoch) == (Phase.DONE, 12, 4)
    assert final.metrics["valid_loss"] < 0.75 * final.history[0]["valid_loss"]
    assert final.metrics["valid_accuracy"] > 0.8
    assert (final.hyper["lr"], final.hyper["momentum"]) == (0.05, 0.9)
    trace.assert_order("clip_grad_norm", before="step")


def test_tiny_supervised_is_the_same_each_time(tiny_supervised: Any) -> None:
    """Nothing of it is drawn: two trainings with it agree to the last bit."""
    final = run(start(tiny_supervised, epochs=1))

    assert final.metrics["valid_loss"] == pytest.approx(0.7, abs=0.2)
    assert sum(p.numel() for p in tiny_supervised.model.parameters()) == 15


def test_differing_fields_are_shown(tmp_path: Path) -> None:
    """Of two states that should be equal the fields that differ are shown, and nothing of the others."""
    shown = pytest_in(
        tmp_path,
        "from fsm_train import Phase\nfrom fsm_train.testing import at\n"
        "def test_it():\n    assert at(Phase.EPOCH_END, step=3, lr=0.1) == at(Phase.EPOCH_END, step=4, lr=0.2)\n",
    )

    assert "assert a state at epoch_end == a state at epoch_end" in shown
    assert "These fields differ:" in shown
    assert "step: 3 != 4" in shown
    assert "hyper['lr']: 0.1 != 0.2" in shown
    assert "plan" not in shown.split("These fields differ")[1]


def test_other_comparisons_are_left_alone(tmp_path: Path) -> None:
    """Values that are no states, and other comparisons of states, are shown as pytest shows them."""
    shown = pytest_in(
        tmp_path,
        "from fsm_train import Phase\nfrom fsm_train.testing import at\n"
        "def test_number():\n    assert 1 == 2\n"
        "def test_unequal():\n    state = at(Phase.READY)\n    assert state != state\n",
    )

    assert "assert 1 == 2" in shown
    assert "2 failed" in shown
    assert "These fields differ" not in shown


def test_plugin_imports_nothing_of_the_package(tmp_path: Path) -> None:
    """A pytest run that uses nothing of it pays for one small module."""
    shown = pytest_in(
        tmp_path,
        "import sys\ndef test_it():\n    assert 1 != 2\n"
        "    assert not {'fsm_train', 'torch', 'attrs', 'hypothesis'} & set(sys.modules)\n",
    )

    assert "1 passed" in shown


def test_without_torch_the_real_model_is_skipped(tmp_path: Path) -> None:
    """Where torch cannot be imported, a test with the real model is skipped, and one with a script runs."""
    shown = pytest_in(
        tmp_path,
        "from fsm_train import run, start\n"
        "def test_script(scripted):\n    assert run(start(scripted, epochs=1)).step == 3\n"
        "def test_real(tiny_supervised):\n    assert False\n",
        "-rs",
        python="import sys; sys.modules['torch'] = None; ",
    )

    assert "1 passed, 1 skipped" in shown
    assert "torch" in shown


def test_states_that_differ_in_what_is_not_compared() -> None:
    """The plugin compares as `==` does: elapsed time is no difference."""
    assert at(Phase.READY, elapsed=1.0) == at(Phase.READY, elapsed=2.0)
