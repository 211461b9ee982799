"""Objects that load a state of their own, beside the model: all of them, or none.

Rule of this file: what such an object raises is its own matter; it is said with the object's name, and the objects
that were loaded before it get back the state that they had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from ..core.errors import WorkloadError
from ..data.sources import own_state


@contextlib.contextmanager
def states_loaded(objects: Iterable[tuple[str, Any, Any]]) -> Iterator[None]:
    """Load the state of each object; if one refuses, or what is done in this context fails, they are put back.

    Args:
        objects: each with its name, and the state that it is to load.

    Raises:
        WorkloadError: an object refuses its state; the message names it.
    """
    with contextlib.ExitStack() as undo:
        for name, part, state in objects:
            before = own_state(part)
            if before is not None:
                undo.callback(part.load_state_dict, before)
            try:
                part.load_state_dict(state)
            except Exception as error:
                raise WorkloadError(
                    f"{name} is another one than was saved: it refuses that state ({type(error).__name__}: {error})"
                ) from error
        yield
        undo.pop_all()
