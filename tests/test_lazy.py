"""Names that a module loads when they are first used."""

from __future__ import annotations

import ast
import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsm_train

USERS = ["fsm_train", "fsm_train.commands", "fsm_train.core", "fsm_train.eventlog", "fsm_train.testing"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a module `same`, in which there is a function `same`, and a module `other`."""
    folder = tmp_path / "lazily"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from fsm_train.lazy import lazy_names\n"
        '__getattr__, __dir__ = lazy_names(__name__, {".same": ("same", "further"), ".other": ()})\n'
    )
    (folder / "same.py").write_text("def same(): ...\nfurther = 1\n")
    (folder / "other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazily"
    for name in [name for name in sys.modules if name.split(".")[0] == "lazily"]:
        del sys.modules[name]


def test_name_is_loaded_when_it_is_first_used(package: str) -> None:
    """Importing the package imports no home; using a name imports its own."""
    lazily = importlib.import_module(package)
    assert "lazily.same" not in sys.modules

    assert lazily.further == 1
    assert {"lazily.same", "lazily.other"} & sys.modules.keys() == {"lazily.same"}


def test_name_is_stored_in_place_of_the_module_of_the_same_name(package: str) -> None:
    """A function is the function, though the import system puts its module there under the same name."""
    lazily = importlib.import_module(package)

    assert lazily.same is lazily.same is sys.modules["lazily.same"].same
    assert vars(lazily)["same"] is lazily.same


def test_home_without_names_is_a_module(package: str) -> None:
    """A module can be such a name itself."""
    lazily = importlib.import_module(package)

    assert lazily.other is sys.modules["lazily.other"]


def test_names_are_listed_before_they_are_loaded(package: str) -> None:
    """`dir` names them, so that they are completed; what is no name is an AttributeError."""
    lazily = importlib.import_module(package)

    assert {"same", "further", "other", "__name__"} <= set(dir(lazily))
    with pytest.raises(AttributeError, match="module 'lazily' has no attribute 'nonsense'"):
        lazily.nonsense  # noqa: B018


@pytest.mark.parametrize("name", USERS)
def test_type_checkers_and_python_find_the_same_objects(name: str) -> None:
    """Each name that is imported for type checkers is, at run time, the object of that import."""
    module = importlib.import_module(name)
    (branch,) = (node for node in ast.parse(Path(str(module.__file__)).read_text()).body if isinstance(node, ast.If))
    imports = [node for node in branch.body if isinstance(node, ast.ImportFrom)]

    for node in imports:
        home = importlib.import_module("." * node.level + (node.module or ""), module.__spec__.parent)
        for alias in node.names:
            assert getattr(module, alias.name) is getattr(home, alias.name)
    assert {alias.name for node in imports for alias in node.names} <= set(dir(module))


def test_star_import_brings_the_lazy_names() -> None:
    """`from fsm_train import *` gives each name of `__all__`."""
    names: dict[str, object] = {}
    exec("from fsm_train import *", names)

    assert names.keys() >= set(fsm_train.__all__)


def test_lazily_loaded_objects_are_pickled() -> None:
    """What was loaded lazily is pickled by its home."""
    for name in fsm_train.__all__:
        if name != "commands":
            assert pickle.loads(pickle.dumps(getattr(fsm_train, name))) is getattr(fsm_train, name)


def test_function_beside_a_module_of_its_name_is_found_first_or_last() -> None:
    """`sinks.progress` is the function, also where its module was imported before."""
    code = "import fsm_train.sinks.progress; from fsm_train.sinks import progress; print(callable(progress))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
