"""Examples in docstrings do what they say, and each public object has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import fsm_train

MODULES = [
    module.name
    for module in pkgutil.walk_packages(fsm_train.__path__, "fsm_train.")
    if not module.name.endswith("__main__")
]
PUBLIC = ["", ".callbacks", ".commands", ".data", ".diagnosis", ".eventlog", ".schedules", ".sinks", ".testing"]


def public_objects() -> dict[str, object]:
    """The public objects that have a docstring of their own, each under the first of its names."""
    objects: dict[int, tuple[str, object]] = {}
    for module in PUBLIC:
        package = importlib.import_module(f"fsm_train{module}")
        for name in package.__all__:
            value = getattr(package, name)
            if callable(value) or isinstance(value, type(doctest)):
                objects.setdefault(id(value), (f"{package.__name__}.{name}", value))
    return dict(objects.values())


OBJECTS = public_objects()


def documented(value: object) -> dict[str, list[str]]:
    """The arguments that the docstring describes, in its order, by the heading above each of its sections."""
    sections = re.findall(r"(.*)\n\nArgs:\n((?:    .*\n?|\n(?=    ))*)", inspect.getdoc(value) or "")
    names = re.compile(r"^    \*{0,2}(\w[\w, ]*):", re.MULTILINE)
    return {heading: re.split(r", ", ", ".join(names.findall(section))) for heading, section in sections}


DESCRIBED = {name: value for name, value in OBJECTS.items() if documented(value)}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example writes is no part of the next one."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    """Each example in the module's docstrings prints what stands below it."""
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert failed == 0


@pytest.mark.parametrize("name", OBJECTS)
def test_each_public_object_has_an_example_that_runs(name: str) -> None:
    """The docstring shows how the object is used, also where a decorator hides it from `doctest.testmod`."""
    value = OBJECTS[name]
    module = importlib.import_module(getattr(value, "__module__", None) or name)
    example = doctest.DocTestParser().get_doctest(value.__doc__ or "", dict(vars(module)), name, None, None)
    assert any(doctest.SKIP not in line.options for line in example.examples), f"{name} has no example that runs"

    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


@pytest.mark.parametrize("name", DESCRIBED)
def test_each_argument_is_described_once(name: str) -> None:
    """What the docstring describes under "Args" is what the object takes, whether in one section or in several."""
    takes = set(inspect.signature(DESCRIBED[name]).parameters)  # type: ignore[arg-type]
    described = [argument for section in documented(DESCRIBED[name]).values() for argument in section]

    if name.startswith("fsm_train.callbacks."):
        takes -= {"name"} - {*described}  # of each factory, and described there
    assert sorted(described) == sorted(takes)


def test_settings_of_a_workload_stand_in_groups() -> None:
    """Each group is short enough to look through, and what is always given comes before what is seldom."""
    groups = documented(fsm_train.Supervised)

    assert list(groups) == ["What is trained", "The data", "What is measured", "How it is run"]
    assert all(len(group) <= 7 for group in groups.values())
    assert groups["What is trained"][:3] == ["model", "optimizer", "loss_fn"]
    assert groups["The data"][:2] == ["train", "valid"]
