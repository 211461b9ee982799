"""The plan of a training: how long it is, and what its generators begin with.

Rule of this file: what is wrong with a plan is refused when it is made.
"""

from __future__ import annotations

import operator
from typing import Any

import attrs

from .checks import check_positive, is_whole


def _count_or_none(plan: Plan, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is None:
        return
    if not is_whole(value):
        whole: object = value
        advice = f": write {attribute.name}={whole:.0f}" if isinstance(whole, float) and whole.is_integer() else ""
        raise TypeError(f"{attribute.name} is a whole number, not {value!r}{advice}")
    if value < 0:
        raise ValueError(
            f"{attribute.name}={value}: a training cannot have a negative number of them. Leave {attribute.name} out "
            "for no limit"
        )


def _seed(plan: Plan, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and not is_whole(value, 0):
        raise ValueError(
            f"seed={value!r}: a seed is a whole number from 0, or None to leave the generators as they are"
        )


def _seconds(plan: Plan, attribute: attrs.Attribute[float | None], value: float | None) -> None:
    if value is not None:
        check_positive("seconds", value)


def _plain(value: Any) -> Any:
    """A whole number of NumPy or torch as an int; anything else as it is."""
    if type(value) is int or isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


@attrs.frozen(repr=False)
class Plan:
    """How long to train: whichever of `epochs`, `max_steps` and `seconds` is reached first ends the training.

    >>> Plan(epochs=10, max_steps=5_000)
    Plan(epochs=10, max_steps=5000, seed=None)

    Attributes:
        epochs: passes over the training data.
        max_steps: optimizer steps that were applied.
        seed: seeds all generators when the training begins; None leaves them as they are.
        seconds: of training, added up over the calls of `run`. The batch under way when they are over is the last.
    """

    epochs: int | None = attrs.field(default=None, converter=_plain, validator=_count_or_none)
    max_steps: int | None = attrs.field(default=None, converter=_plain, validator=_count_or_none)
    seed: int | None = attrs.field(default=None, converter=_plain, validator=_seed)

    seconds: float | None = attrs.field(default=None, validator=_seconds)

    def __attrs_post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None and self.seconds is None:
            raise ValueError("a plan without an end: give epochs, max_steps or seconds, or several of them")

    def __repr__(self) -> str:
        seconds = "" if self.seconds is None else f", seconds={self.seconds!r}"
        return f"Plan(epochs={self.epochs!r}, max_steps={self.max_steps!r}, seed={self.seed!r}{seconds})"
