"""What is imported when it is first used: names that need torch, say, and packages that only some have installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def from_extra(module: str, extra: str, who: str) -> Any:
    """A module of a package that an extra installs.

    Args:
        module: its name.
        extra: the extra that installs it.
        who: needs it, as one calls that.

    Raises:
        ModuleNotFoundError: it is not installed; with what to install.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{who} needs {error.name}: pip install 'fsm-train[{extra}]'", name=error.name
        ) from error


def lazy_names(module: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a module some of whose names are loaded when they are first used.

    Args:
        module: `__name__` of the module that has the names.
        homes: the names by the module that defines them, which is relative to the package. A home
            without names is a module that is a name itself.
    """
    namespace = vars(sys.modules[module])
    anchor = namespace["__spec__"].parent
    home_of = {name: home for home, names in homes.items() for name in names or (home.lstrip("."),)}

    def getattr_(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = import_module(home_of[name], anchor)
        # Stored also because the import above makes the home an attribute of the package: the two may have one name.
        namespace[name] = getattr(home, name) if homes[home_of[name]] else home
        return namespace[name]

    return getattr_, lambda: sorted({*namespace, *home_of})
