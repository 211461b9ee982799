"""The option --callbacks MODULE:NAME."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.callback import Callback
from .status import UsageError


def add_callbacks_option(parser: argparse.ArgumentParser) -> None:
    text = "import the callbacks from there: a list, or a function giving one"
    parser.add_argument("--callbacks", metavar="MODULE:NAME", help=text)


def import_callbacks(name: str) -> list[Callback[Any]]:
    """The callbacks at MODULE:NAME: a callback, a list of them, or a function that returns one of both.

    The module is looked for in the current folder first.

    Raises:
        UsageError: it cannot be imported, or is none of these.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UsageError(f"--callbacks {name}: write it as module:name")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--callbacks {name}: {error}") from error
    finally:
        sys.path.pop(0)
    if callable(value) and not isinstance(value, Callback):
        try:
            value = value()
        except TypeError as error:  # it takes arguments, as a factory does
            raise UsageError(f"--callbacks {name}: {error}: name a list, or a function without arguments") from error
    several: Any = value if isinstance(value, Iterable) else [value]
    callbacks = [value] if isinstance(value, Callback) else list(several)
    if not all(isinstance(callback, Callback) for callback in callbacks):
        raise UsageError(f"--callbacks {name}: it is no list of callbacks")
    return callbacks
