"""A callback for a part of the training.

Rule of this file: the window depends on the state alone, so a resume and a replay see the same one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ..core.arguments import no_callback
from ..core.callback import Callback, factory
from ..core.checks import check_count
from ..core.origin import call_factory, recipe_of, resolve
from ..core.phase import BATCH_PHASES, EPOCH_PHASES, Phase
from ..core.state import State
from ..core.transition import Transition
from ..core.values import frozen_map

Window = tuple[int | None, int | None]
"""The first one and the one after the last, counted from 0; None is open."""


@attrs.frozen
class Recipe:
    """The call that makes a callback, as data: what a log and a pickle hold of the callback inside.

    Attributes:
        factory: the name of the factory, with its module.
        name: of the callback.
        params: what it is called with.
    """

    factory: str
    name: str
    params: Mapping[str, object] = attrs.field(converter=frozen_map)

    @staticmethod
    def of(callback: Callback[Any]) -> Recipe | Callback[Any]:
        """The recipe of a callback; the callback itself if no call gives it again."""
        recipe = recipe_of(callback)
        if recipe is None or recipe[0] is not call_factory:
            return callback
        return Recipe(callback.factory, callback.name, callback.params)

    def make(self) -> Callback[Any]:
        """The callback that the call gives."""
        return call_factory(resolve(self.factory), self.params, self.name)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.factory.rpartition('.')[2]}({settings})"


def _as_recorded(make: Callable[..., Callback[Any]]) -> Callable[..., Callback[Any]]:
    """Let the `params` have the callback inside as a `Recipe`, and the windows as tuples."""

    @functools.wraps(make)
    def made(callback: Callback[Any] | Recipe, **settings: Any) -> Callback[Any]:
        if not isinstance(callback, (Callback, Recipe)):
            raise TypeError(no_callback(callback))
        if not isinstance(settings.get("name"), (str, type(None))):
            raise TypeError(f"name={settings['name']!r}: the name of a callback is a text")
        for name in ("epochs", "steps"):
            if isinstance(settings.get(name), list):
                settings[name] = tuple(settings[name])
        return make(Recipe.of(callback) if isinstance(callback, Callback) else callback, **settings)

    return made


@_as_recorded
@factory
def during(
    callback: Callback[Any] | Recipe,
    *,
    epochs: Window | None = None,
    steps: Window | None = None,
    name: str | None = None,
) -> Callback[Any]:
    """Consult a callback only within some epochs, or some steps.

    At the phases of the callback that are within epochs, from EPOCH_BEGIN to EPOCH_END. Outside of them, from SETUP to
    TRAIN_BEGIN and from TRAIN_END to TEARDOWN, it is consulted as without a window: there a schedule reads the
    optimizer's own values, and a checkpoint is written at SUSPEND.

    What it has put in place stays when the window ends: a hyper-parameter has its last value, what is frozen stays
    frozen, an average is no longer updated and is what the training ends with. What it answers for a batch ends with
    the batch: a step is no longer clipped, held back or weighed.

    >>> from fsm_train.callbacks import accumulate
    >>> from fsm_train.testing import simulate
    >>> final = simulate([during(accumulate(4), epochs=(1, None))], epochs=2, batches=8)
    >>> final.step  # eight in the first epoch, two in the second
    10

    Args:
        callback: what is consulted. Its name, memory and declarations are those of the whole.
        epochs: the first epoch and the one after the last, from 0, as in a slice; None is open. EPOCH_END belongs to
            the epoch that it ends.
        steps: the same for optimizer steps that were taken: from the time when that many are taken until that many are.
            STEP_END belongs to the step that it ends.
        name: of the whole; by default that of the callback.

    Raises:
        TypeError: it is no callback, or a window is no pair.
        ValueError: there are two windows or none; one is empty; or the callback is consulted outside of epochs only,
            where a window leaves nothing out.
    """
    if (epochs is None) is (steps is None):
        raise ValueError("during what? give epochs=(first, end) or steps=(first, end), and not both")
    unit, window = ("epochs", epochs) if steps is None else ("steps", steps)
    first, end = _checked(unit, window)
    inner = callback.make() if isinstance(callback, Recipe) else callback
    if not (BATCH_PHASES | EPOCH_PHASES).intersection(inner.at):
        there = ", ".join(phase.value for phase in inner.at)
        raise ValueError(
            f"{inner.name!r} is consulted at {there} only, outside of epochs: what it puts in place there lasts, and "
            "a window cannot leave it out"
        )
    now = _epoch if steps is None else _step

    @functools.wraps(inner.decide)
    def decide(state: State, memory: Any) -> Transition | None:
        if state.phase in BATCH_PHASES or state.phase in EPOCH_PHASES:
            at = now(state)
            if at < first or (end is not None and at >= end):
                return None
        return inner.decide(state, memory)

    reads = inner.reads if steps is None else None  # by the number of steps no decision is kept
    return attrs.evolve(inner, decide=decide, reads=None if reads is None else {*reads, "epoch"})


def _checked(unit: str, window: object) -> tuple[int, int | None]:
    if not isinstance(window, tuple) or len(window) != 2:
        raise TypeError(f"{unit}={window!r}: give the first and the one after the last, such as {unit}=(0, 4)")
    first, end = window
    if first is not None:
        check_count(f"the first of {unit}", first)
    if end is not None:
        check_count(f"the end of {unit}", end)
        if end <= (first or 0):
            raise ValueError(f"{unit}={window!r} is empty: it ends before it begins, as the end is not in it")
    return first or 0, end


def _epoch(state: State) -> int:
    return state.epoch - (state.phase is Phase.EPOCH_END)


def _step(state: State) -> int:
    return state.step - (state.phase is Phase.STEP_END)
