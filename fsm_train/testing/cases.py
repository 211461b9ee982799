"""The laws' own types: a law, and the case that it judges, which is one callback in one training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from ..core.callback import Callback
from ..core.state import Hyper
from ..core.transition import Transition
from .consultation import Consultation, Failure, Response
from .trace import summary
from .training import Training, consultations_of


@attrs.frozen
class Finding:
    """Something that is wrong.

    Attributes:
        what: a sentence that says what.
        at: the consultation in which it happened; None if it concerns the whole callback.
    """

    what: str
    at: Consultation | None = None


class Case:
    """A callback in one training. Each way of running it is computed when a law first asks for it.

    Attributes:
        callback: the callback.
        training: the training.
        hyper: the hyper-parameters of the optimizer.
        metrics: names of the metrics that the callback reads in some training.
    """

    def __init__(
        self, callback: Callback[Any], training: Training, hyper: Mapping[str, Hyper], metrics: Sequence[str]
    ) -> None:
        self.callback = callback
        self.training = training
        self.hyper = hyper
        self.metrics = metrics

    @functools.cached_property
    def alone(self) -> list[Consultation]:
        """The consultations where it is the only callback, observed."""
        return consultations_of(self.callback, self.training, hyper=self.hyper, observe=True)

    @functools.cached_property
    def with_watchers(self) -> list[Consultation]:
        """The consultations among callbacks that change nothing, at another place in the list."""
        return consultations_of(self.callback, self.training, hyper=self.hyper, watchers=True)

    @functools.cached_property
    def with_interrupt(self) -> list[Consultation]:
        """The consultations where the training is suspended, and resumed with memories from JSON."""
        return consultations_of(self.callback, self.training, hyper=self.hyper, interrupt=True)

    @functools.cached_property
    def with_two_groups(self) -> list[Consultation]:
        """The consultations with two parameter groups; none if it neither reads nor sets hyper-parameters."""
        if not any(c.observations.hyper or c.answer.hyper for c in self.alone):
            return []
        groups = {name: (value, value / 2) for name, value in self.hyper.items() if isinstance(value, float)}
        return consultations_of(self.callback, self.training, hyper=groups, observe=True)

    def without(self, metric: str) -> list[Consultation]:
        """The consultations where this metric is never measured."""
        return consultations_of(self.callback, self.training, hyper=self.hyper, without=metric, observe=True)


@attrs.frozen
class Law:
    """What holds for every callback.

    Attributes:
        name: the name of the check.
        sentence: what holds, in one sentence.
        mend: what to do about a callback that breaks it.
        judge: returns the first thing that is wrong in a case, or None.
        after: names of the laws that must hold before this one can be judged.
        whole: whether a finding shows the training too, and not only the state.
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
    """Make a law of a function: its name is the law's, the first line of its docstring the sentence."""

    def decorate(judge: Callable[[Case], Finding | None]) -> Law:
        sentence = (judge.__doc__ or "").strip().splitlines()[0]
        made = LAWS[judge.__name__] = Law(judge.__name__, sentence, mend, judge, tuple(after), whole)
        return made

    return decorate


def describe_change(before: Response, after: Response, when: str) -> str:
    return f"{when} it answers otherwise: {_shown(after)} instead of {_shown(before)}"


def _shown(response: Response) -> str:
    if isinstance(response, Failure):
        return f"raising {response.kind}"
    return "nothing" if response is None else summary(response) if isinstance(response, Transition) else repr(response)
