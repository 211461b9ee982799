"""How schedules combine: one after the other, multiplied, or as the value itself.

Rule of this file: combinations do not nest, so that those which do the same are equal, whatever their
brackets.
"""
# ruff: noqa: N801 -- users call these records like the functions that they are, and see that in their repr

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import attrs

from ..core.checks import is_whole
from .checks import count, finite, takes


@attrs.frozen(repr=False)
class Schedule(ABC):
    """A factor of the optimizer's own value, as a function of progress.

    To write one, derive a frozen attrs class that defines `at`, and `length` if it has an end.

    >>> @attrs.frozen(repr=False)
    ... class inverse(Schedule):
    ...     rate: float
    ...
    ...     def at(self, progress):
    ...         return 1 / (1 + self.rate * progress)
    >>> inverse(0.5), inverse(0.5)(2)
    (inverse(0.5), 0.5)
    """

    @property
    def length(self) -> int | None:
        """The progress from which it holds its last value; None if it has no end."""
        return None

    @property
    def span(self) -> tuple[int, int | None]:
        """The shortest and the longest plan that it is meant for, in the unit that it counts.

        The shortest shows its whole shape once. The longest is None if it has no end, or if its last value is meant
        to be trained with: by default if that is the largest of the values around it, as after a warm-up.
        """
        if self.length is None:
            return 0, None
        last = self.at(self.length)
        return self.length, None if last >= max(self.at(0), self.at(self.length / 2)) else self.length

    @abstractmethod
    def at(self, progress: float) -> float:
        """The factor at this progress, which is known to be finite and not negative."""

    def __call__(self, progress: float) -> float:
        if not 0 <= progress < math.inf:
            raise ValueError(f"progress={progress!r}: a schedule is asked about progress that counts from 0")
        return float(self.at(progress))

    def then(self, following: Schedule, *, after: int | None = None) -> Schedule:
        """Continue with the `following` schedule at the end of this one; its progress counts from there.

        >>> from fsm_train.schedules import exponential, warmup
        >>> [warmup(2, start=0.5).then(exponential(0.5))(i) for i in range(5)]
        [0.5, 0.75, 1.0, 0.5, 0.25]

        Args:
            following: the next schedule.
            after: continue at this progress, instead of at the end. A schedule without an end needs it.

        Raises:
            ValueError: this schedule has no end, and `after` does not give it one.
        """
        if not isinstance(following, Schedule):
            raise TypeError(f"{following!r} cannot follow: give a schedule; absolute(…) goes around the whole chain")
        after = self.length if after is None else after
        if after is None:
            raise ValueError(f"{self!r} has no end: say when to go over, .then({following!r}, after=1000)")
        if not is_whole(after, least=1):
            raise ValueError(f"then: after={after!r}, but it takes a whole number from 1")
        if isinstance(following, Chain):
            return Chain((*_stages(self, after), *following.stages), following.last)
        return Chain(_stages(self, after), following)

    def __mul__(self, other: Schedule | float) -> Schedule:
        if isinstance(other, Schedule):
            return _product(self, other)
        return _product(self, constant(other)) if isinstance(other, (int, float)) else NotImplemented

    def __rmul__(self, other: float) -> Schedule:
        return self * other

    def __repr__(self) -> str:
        shown = []
        for index, field in enumerate(attrs.fields(type(self))):
            value = getattr(self, field.name)
            if value != field.default:
                name = "" if index == 0 or field.default is attrs.NOTHING else f"{field.name}="
                shown.append(name + (field.repr(value) if callable(field.repr) else repr(value)))
        return f"{type(self).__name__}({', '.join(shown)})"


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)


def _is_stage(stage: object) -> bool:
    match stage:
        case (Schedule(), length):
            return is_whole(length, least=1)
    return False


_are_stages = takes("stages, each with its length", _is_tuple, lambda stages: all(map(_is_stage, stages)))
_is_schedule = takes("a schedule", lambda value: isinstance(value, Schedule), lambda _: True)
_are_schedules = takes("schedules", _is_tuple, lambda parts: all(isinstance(part, Schedule) for part in parts))


@attrs.frozen(repr=False)
class Chain(Schedule):
    """One schedule after the other, as `then` makes it.

    >>> from fsm_train.schedules import cosine, warmup
    >>> chain = warmup(100).then(cosine(900))
    >>> chain, chain.length
    (warmup(100).then(cosine(900)), 1000)

    Attributes:
        stages: the schedules but the last, each with its length.
        last: the last one, which has no length of its own.
    """

    stages: tuple[tuple[Schedule, int], ...] = attrs.field(validator=_are_stages)
    last: Schedule = attrs.field(validator=_is_schedule)

    @property
    def length(self) -> int | None:
        return None if self.last.length is None else sum(length for _, length in self.stages) + self.last.length

    @property
    def span(self) -> tuple[int, int | None]:
        before = sum(length for _, length in self.stages)
        shortest, longest = self.last.span
        return before + shortest, None if longest is None else before + longest

    def at(self, progress: float) -> float:
        for schedule, length in self.stages:
            if progress < length:
                return schedule.at(progress)
            progress -= length
        return self.last.at(progress)

    def __repr__(self) -> str:
        schedules = (*(schedule for schedule, _ in self.stages), self.last)
        shown = f"({schedules[0]!r})" if isinstance(schedules[0], Product) else repr(schedules[0])
        end = 0
        for (schedule, length), following in zip(self.stages, schedules[1:], strict=True):
            end += length
            shown += f".then({following!r})" if length == schedule.length else f".then({following!r}, after={end})"
        return shown


def _stages(schedule: Schedule, length: int) -> tuple[tuple[Schedule, int], ...]:
    """The stages of the schedule's first `length`, without nesting: how a chain is bracketed changes nothing."""
    if not isinstance(schedule, Chain):
        return ((schedule, length),)
    stages = []
    for part, part_length in schedule.stages:
        stages.append((part, min(part_length, length)))
        length -= part_length
        if length <= 0:
            return tuple(stages)
    return (*stages, (schedule.last, length))


@attrs.frozen(repr=False)
class Product(Schedule):
    """The product of a number and of schedules, as `*` makes it. It ends when all of them have ended.

    >>> from fsm_train.schedules import exponential, warmup
    >>> product = warmup(10) * exponential(0.5) * 2
    >>> product
    2.0 * warmup(10) * exponential(0.5)
    """

    number: float = attrs.field(validator=finite)
    factors: tuple[Schedule, ...] = attrs.field(validator=_are_schedules)

    @property
    def length(self) -> int | None:
        lengths = [factor.length for factor in self.factors]
        return None if None in lengths else max(filter(None, lengths))

    @property
    def span(self) -> tuple[int, int | None]:
        spans = [factor.span for factor in self.factors]
        ends = [longest for _, longest in spans if longest is not None]
        return max(shortest for shortest, _ in spans), max(ends, default=None)

    def at(self, progress: float) -> float:
        return self.number * math.prod(factor.at(progress) for factor in self.factors)

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.factors if self.number == 1 else (self.number, *self.factors)))


def _product(*schedules: Schedule) -> Schedule:
    number = 1.0
    factors: tuple[Schedule, ...] = ()
    for schedule in schedules:
        match schedule:
            case Product():
                number *= schedule.number
                factors += schedule.factors
            case constant(length=None):
                number *= schedule.factor
            case _:
                factors += (schedule,)
    if not factors:
        return constant(number)
    return factors[0] if number == 1 and len(factors) == 1 else Product(number, factors)


@attrs.frozen(repr=False)
class Absolute:
    """A function of progress that gives the value itself, not a factor of the optimizer's own. See `absolute`.

    >>> absolute(0.05)(1_000)
    0.05
    """

    schedule: Callable[[float], float]

    def __call__(self, progress: float) -> float:
        return float(self.schedule(progress))

    def __repr__(self) -> str:
        return f"absolute({self.schedule!r})"


def absolute(value: Absolute | Callable[[float], float] | float) -> Absolute:
    """Use a schedule, a number, or any function of progress as the value itself, not as a factor.

    >>> from fsm_train.schedules import linear
    >>> absolute(linear(0.5, 1, 100))(50)
    0.75
    >>> absolute(lambda progress: 0.1 / (1 + progress))(1)
    0.05
    """
    if isinstance(value, Absolute):
        return value
    if isinstance(value, (int, float)):
        return Absolute(constant(value))
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"absolute({value!r}): give a schedule, a number, or a function of progress")
    return Absolute(value)


@attrs.frozen(repr=False)
class constant(Schedule):
    """Keep one factor: f(t) = factor. With a `length` it can be followed by another schedule.

    >>> [constant(0.5, length=2).then(constant())(i) for i in range(4)]
    [0.5, 0.5, 1.0, 1.0]
    """

    factor: float = attrs.field(default=1.0, validator=finite)
    length: int | None = attrs.field(default=None, validator=attrs.validators.optional(count))

    @property
    def span(self) -> tuple[int, int | None]:
        return 0, None

    def at(self, progress: float) -> float:
        return self.factor
