"""What is installed from the wheel works without the repository beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
# Coverage is measured in the repository: a second copy of the package would count as code without tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the package, as the wheel brings it. Nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}", str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", f"--target={folder / 'site'}", str(wheel)], check=True)
    return folder / "site"


def output_of(installed: Path, *command: str) -> str:
    """What the command prints in an empty folder, where only the wheel has the package."""
    (empty := installed.parent / "empty").mkdir(exist_ok=True)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout


def test_wheel_has_every_public_name(installed: Path) -> None:
    """The package is imported from the wheel, and so is what each name in `__all__` needs."""
    code = "import fsm_train; [getattr(fsm_train, name) for name in fsm_train.__all__]; print(fsm_train.__file__)"

    assert output_of(installed, sys.executable, "-c", code) == f"{installed / 'fsm_train' / '__init__.py'}\n"


def test_wheel_brings_the_command(installed: Path) -> None:
    """`python -m fsm_train` and the script `fsm-train` both draw the machine."""
    graph = output_of(installed, sys.executable, "-m", "fsm_train", "graph")

    assert "TRAIN_BEGIN" in graph
    assert output_of(installed, str(installed / "bin" / "fsm-train"), "graph") == graph


def test_wheel_brings_the_page(installed: Path, tmp_path: Path) -> None:
    """`fsm-train view` finds its template, style and script."""
    log, page = ROOT / "tests" / "eventlog" / "golden" / "checks-1.jsonl", tmp_path / "page.html"

    output_of(installed, sys.executable, "-m", "fsm_train", "view", str(log), "-o", str(page))
    assert page.read_text().startswith("<!doctype html>")


def test_wheel_has_types_and_no_tests(installed: Path) -> None:
    """The marker for type checkers is there, and the package is the only one that is installed."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert (installed / "fsm_train" / "py.typed").exists()
    names = {path.name for path in installed.iterdir()} - {"__pycache__"}
    assert names == {"fsm_train", "_fsm_train_pytestplugin.py", f"fsm_train-{version}.dist-info", "bin"}
