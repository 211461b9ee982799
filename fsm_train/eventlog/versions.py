"""The versions of packages that a header names."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from importlib import metadata


@functools.cache
def versions() -> Mapping[str, str]:
    """The versions of the packages that a training depends on. None of them is imported for it.

    To look them up takes longer than all else that a log adds to a short run, and they stay what they are.
    """
    installed = {"python": sys.version.split()[0]}
    for name in ("fsm-train", "attrs", "structlog", "torch"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # pragma: no cover - all of them are dependencies
            continue
    return installed
