"""What a law is, and what it is put to: a callback in a training, looked at in several ways."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from ..core.callback import Callback
from ..core.state import Hyper
from ..core.transition import Transition
from .consultation import Consultation, Outcome, Raised
from .examination import Training, examine
from .trace import summary


@attrs.frozen
class Finding:
    """Something that is wrong.

    Attributes:
        what: a sentence that says it.
        at: the consultation in which it happened.
    """

    what: str
    at: Consultation | None = None


class Case:
    """A callback in one training, in all the ways in which it is looked at; each only once it is asked for."""

    def __init__(
        self, callback: Callback[Any], training: Training, hyper: Mapping[str, Hyper], asked: Sequence[str]
    ) -> None:
        self.callback = callback
        self.training = training
        self.hyper = hyper
        self.asked = asked  # the metrics that it asks for in some training

    @functools.cached_property
    def alone(self) -> list[Consultation]:
        """By itself, with notes."""
        return examine(self.callback, self.training, hyper=self.hyper, closely=True)

    @functools.cached_property
    def accompanied(self) -> list[Consultation]:
        """Among others, at another place in the list."""
        return examine(self.callback, self.training, hyper=self.hyper, onlookers=True)

    @functools.cached_property
    def interrupted(self) -> list[Consultation]:
        """Suspended, and gone on with, with memories that were saved."""
        return examine(self.callback, self.training, hyper=self.hyper, interrupted=True)

    @functools.cached_property
    def grouped(self) -> list[Consultation]:
        """With two parameter groups; nobody, if it has nothing to do with hyper-parameters."""
        if not any(c.notes.hyper or c.answer.hyper for c in self.alone):
            return []
        groups = {name: (value, value / 2) for name, value in self.hyper.items() if isinstance(value, float)}
        return examine(self.callback, self.training, hyper=groups, closely=True)

    def without(self, metric: str) -> list[Consultation]:
        """With a metric that is never measured."""
        return examine(self.callback, self.training, hyper=self.hyper, without=metric, closely=True)


@attrs.frozen
class Law:
    """One law.

    Attributes:
        name: of the check.
        sentence: what holds, in one sentence.
        mend: what to do where it does not.
        judge: finds what is wrong in a training.
        after: the laws without which this one cannot be judged.
        whole: whether the training is needed to see what is wrong, and not only the state.
    """

    name: str
    sentence: str
    mend: str
    judge: Callable[[Case], Finding | None]
    after: tuple[str, ...] = ()
    whole: bool = False


LAWS: dict[str, Law] = {}


def law(
    mend: str, *, after: Sequence[str] = (), whole: bool = False
) -> Callable[[Callable[[Case], Finding | None]], Law]:
    """Make a law of a function, with its name and the first line of its docstring."""

    def decorate(judge: Callable[[Case], Finding | None]) -> Law:
        sentence = (judge.__doc__ or "").strip().splitlines()[0]
        made = LAWS[judge.__name__] = Law(judge.__name__, sentence, mend, judge, tuple(after), whole)
        return made

    return decorate


def changed(before: Outcome, after: Outcome, when: str) -> str:
    return f"{when} it answers otherwise: {_shown(after)} instead of {_shown(before)}"


def _shown(outcome: Outcome) -> str:
    if isinstance(outcome, Raised):
        return f"raising {outcome.kind}"
    return "nothing" if outcome is None else summary(outcome) if isinstance(outcome, Transition) else repr(outcome)
