"""What must not change while something looks at a training: the batch under way, and the random generators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..data.generators import Generators
from ..data.loaders import persistent_workers_running, set_persistent_workers, with_inner
from .training import Training

NOT_KEPT = frozenset({"interrupt"})
"""Attributes that others than the training set: a signal that comes meanwhile is not undone."""


@contextlib.contextmanager
def set_aside(work: Training) -> Iterator[None]:
    """Give the batch under way back when this context ends, with all that an evaluation replaces.

    Persistent workers of the validation loader that an evaluation started are ended: a loader draws when it
    starts them, and the training's own validation is to draw as without the evaluation.
    """
    before = {name: value for name, value in vars(work).items() if name not in NOT_KEPT}
    workers = persistent_workers_running(with_inner(work.valid))
    generators = Generators.now(work.loader_generators())
    try:
        yield
    finally:
        vars(work).update(before)
        set_persistent_workers(with_inner(work.valid), workers)
        generators.put_back()


@contextlib.contextmanager
def undisturbed(work: Training) -> Iterator[None]:
    """Put the random generators back when this context ends."""
    generators = Generators.now(work.loader_generators())
    try:
        yield
    finally:
        generators.put_back()
