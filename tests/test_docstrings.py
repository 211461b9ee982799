"""Examples in docstrings do what they say, and each public object has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import fsm_train

MODULES = [
    module.name
    for module in pkgutil.walk_packages(fsm_train.__path__, "fsm_train.")
    if not module.name.endswith("__main__")
]
PUBLIC = ["", ".callbacks", ".commands", ".data", ".eventlog", ".schedules", ".sinks", ".testing"]


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
