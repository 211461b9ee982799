"""The schedules, each a published method or a closed form."""
# ruff: noqa: N801 -- users call these records like the functions that they are, cosine(100), and see that in their repr

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import attrs

from . import checks
from .checks import CyclicMode, Shape
from .compose import Schedule

Between = Callable[[float, float, float], float]


@attrs.frozen(repr=False)
class warmup(Schedule):
    """Rise linearly to the full value: f(t) = start + (1 - start) min(t / length, 1).

    Gradual warm-up as in Goyal et al. 2017 (arXiv:1706.02677).

    >>> [warmup(4, start=0.5)(i) for i in range(6)]
    [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
    """

    length: int = attrs.field(validator=checks.count)
    start: float = attrs.field(default=0.01, kw_only=True, validator=checks.share)

    def at(self, progress: float) -> float:
        return _interpolate(self.start, 1.0, progress / self.length)


@attrs.frozen(repr=False)
class linear(Schedule):
    """Change linearly from `start` to `end`: f(t) = start + (end - start) min(t / length, 1).

    >>> [linear(1, 0.5, 2)(i) for i in range(4)]
    [1.0, 0.75, 0.5, 0.5]
    """

    start: float = attrs.field(validator=checks.finite)
    end: float = attrs.field(validator=checks.finite)
    length: int = attrs.field(validator=checks.count)

    def at(self, progress: float) -> float:
        return _interpolate(self.start, self.end, progress / self.length)


@attrs.frozen(repr=False)
class exponential(Schedule):
    """Decay by a constant ratio: f(t) = gamma ** t, or f(t) = exp(-rate t). Give one of the two.

    >>> [exponential(0.5)(i) for i in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """

    gamma: float | None = attrs.field(default=None, validator=attrs.validators.optional(checks.finite))
    rate: float | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(checks.finite))

    def __attrs_post_init__(self) -> None:
        if (self.gamma is None) == (self.rate is None):
            raise ValueError(f"{self!r}: give either gamma, as in gamma ** t, or rate=, as in exp(-rate t)")

    def at(self, progress: float) -> float:
        if self.gamma is not None:
            return math.pow(self.gamma, progress)
        return math.exp(-(self.rate or 0.0) * progress)


@attrs.frozen(repr=False)
class step(Schedule):
    """Drop at each multiple of `every`: f(t) = drop ** floor(t / every).

    >>> [step(2, drop=0.5)(i) for i in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: int = attrs.field(validator=checks.count)
    drop: float = attrs.field(default=0.1, validator=checks.drop)

    @property
    def span(self) -> tuple[int, int | None]:
        return self.every, None

    def at(self, progress: float) -> float:
        return math.pow(self.drop, progress // self.every)


def _as_tuple(milestones: Iterable[int] | int) -> tuple[int, ...]:
    return tuple(milestones) if isinstance(milestones, Iterable) else (milestones,)


@attrs.frozen(repr=False)
class multistep(Schedule):
    """Drop at each milestone: f(t) = drop ** (number of milestones <= t).

    >>> [multistep([1, 3], drop=0.5)(i) for i in range(5)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    milestones: tuple[int, ...] = attrs.field(
        converter=_as_tuple,
        validator=attrs.validators.deep_iterable(checks.count),
        repr=lambda milestones: repr(list(milestones)),
    )
    drop: float = attrs.field(default=0.1, validator=checks.drop)

    def __attrs_post_init__(self) -> None:
        if not self.milestones or any(a >= b for a, b in pairwise(self.milestones)):
            raise ValueError(f"multistep: milestones={list(self.milestones)}, but it takes some in ascending order")

    @property
    def span(self) -> tuple[int, int | None]:
        return self.milestones[-1], None

    def at(self, progress: float) -> float:
        return math.pow(self.drop, bisect_right(self.milestones, progress))


@attrs.frozen(repr=False)
class time_decay(Schedule):
    """Decay with the inverse of time: f(t) = 1 / (1 + k t).

    >>> [time_decay(1)(i) for i in (0, 1, 3)]
    [1.0, 0.5, 0.25]
    """

    k: float = attrs.field(validator=checks.finite)

    def at(self, progress: float) -> float:
        return 1 / (1 + self.k * progress)


@attrs.frozen(repr=False)
class polynomial(Schedule):
    """Decay to `floor` along a power: f(t) = floor + (1 - floor) (1 - min(t / length, 1)) ** power.

    >>> [polynomial(2, power=2)(i) for i in range(4)]
    [1.0, 0.25, 0.0, 0.0]
    """

    length: int = attrs.field(validator=checks.count)
    power: float = attrs.field(default=1.0, validator=checks.positive)
    floor: float = attrs.field(default=0.0, kw_only=True, validator=checks.share)

    def at(self, progress: float) -> float:
        return _interpolate(self.floor, 1.0, math.pow(max(1 - progress / self.length, 0.0), self.power))


@attrs.frozen(repr=False)
class cosine(Schedule):
    """Decay to `floor` along half a cosine: f(t) = floor + (1 - floor) (1 + cos(pi min(t / length, 1))) / 2.

    It holds its floor after `length`, where torch's CosineAnnealingLR rises again. Without
    restarts, from SGDR, Loshchilov & Hutter 2017 (arXiv:1608.03983).

    >>> [cosine(2, floor=0.5)(i) for i in range(4)]
    [1.0, 0.75, 0.5, 0.5]
    """

    length: int = attrs.field(validator=checks.count)
    floor: float = attrs.field(default=0.0, kw_only=True, validator=checks.share)

    def at(self, progress: float) -> float:
        return _half_cosine(1.0, self.floor, progress / self.length)


@attrs.frozen(repr=False)
class cosine_restarts(Schedule):
    """Decay along half a cosine and start again at the full value, each cycle `factor` times as long.

    f(t) = floor + (1 - floor) (1 + cos(pi s)) / 2, where s is the finished fraction of the current
    cycle. SGDR, Loshchilov & Hutter 2017 (arXiv:1608.03983); `period` is its T_0, `factor` its T_mult.

    >>> [cosine_restarts(2, floor=0.5)(i) for i in range(4)]
    [1.0, 0.75, 1.0, 0.75]
    """

    period: int = attrs.field(validator=checks.count)
    factor: int = attrs.field(default=1, kw_only=True, validator=checks.count)
    floor: float = attrs.field(default=0.0, kw_only=True, validator=checks.share)

    @property
    def span(self) -> tuple[int, int | None]:
        return self.period, None

    def at(self, progress: float) -> float:
        period = self.period
        if self.factor == 1:
            progress %= period
        while progress >= period:
            progress -= period
            period *= self.factor
        return _half_cosine(1.0, self.floor, progress / period)


@attrs.frozen(repr=False)
class one_cycle(Schedule):
    """Rise from `start` to the full value in the first part, `warmup`, of `length`, then decay to `final`.

    As in torch's OneCycleLR, the peak is at warmup * length - 1, and `final` is reached at length - 1
    and held. A warm-up of less than one step has its peak before the first step, so the schedule begins on
    the way down from it, also as in torch. With `three_phase` the rise is mirrored before the decay to `final`.
    Smith & Topin 2017 (arXiv:1708.07120), Smith 2018 (arXiv:1803.09820).

    >>> [one_cycle(5, warmup=0.6, start=0.5, final=0.25, shape="linear")(i) for i in range(6)]
    [0.5, 0.75, 1.0, 0.625, 0.25, 0.25]
    """

    length: int = attrs.field(validator=checks.count)
    warmup: float = attrs.field(default=0.3, kw_only=True, validator=checks.rise)
    start: float = attrs.field(default=1 / 25, kw_only=True, validator=checks.share)
    final: float = attrs.field(default=1 / 25 / 1e4, kw_only=True, validator=checks.share)
    shape: Shape = attrs.field(default="cosine", kw_only=True, validator=checks.shape)
    three_phase: bool = attrs.field(default=False, kw_only=True, validator=attrs.validators.instance_of(bool))

    def __attrs_post_init__(self) -> None:
        if self.three_phase and self.warmup > 0.5:
            raise ValueError(f"one_cycle: warmup={self.warmup}, but three phases need it twice: give at most 0.5")

    def at(self, progress: float) -> float:
        peak = self.warmup * self.length - 1
        fall = ((2 * peak, self.start),) if self.three_phase else ()
        points = ((0, self.start), (peak, 1.0), *fall, (self.length - 1, self.final))
        return _through(points, progress, _half_cosine if self.shape == "cosine" else _interpolate)


@attrs.frozen(repr=False)
class cyclic(Schedule):
    """Rise linearly from `low` to the full value and fall again, cycle after cycle.

    f(t) = low + (1 - low) h(t) s(t), where h rises from 0 to 1 over `up` and falls over `down` (by
    default as long as `up`), and s is 1 ("triangular"), halved with each cycle ("triangular2"), or
    gamma ** t ("exp_range"). Smith 2017 (arXiv:1506.01186), whose `low` is 1/4 to 1/3.

    >>> [cyclic(2, low=0.5, mode="triangular2")(i) for i in range(8)]
    [0.5, 0.75, 1.0, 0.75, 0.5, 0.625, 0.75, 0.625]
    """

    up: int = attrs.field(validator=checks.count)
    down: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(checks.count))
    low: float = attrs.field(default=0.25, kw_only=True, validator=checks.share)
    mode: CyclicMode = attrs.field(default="triangular", kw_only=True, validator=checks.mode)
    gamma: float = attrs.field(default=1.0, kw_only=True, validator=checks.share)

    def __attrs_post_init__(self) -> None:
        if self.gamma != 1 and self.mode != "exp_range":
            raise ValueError(f"cyclic: gamma={self.gamma} has a meaning only with mode='exp_range', not {self.mode!r}")

    @property
    def span(self) -> tuple[int, int | None]:
        return self.up + (self.down or self.up), None

    def at(self, progress: float) -> float:
        down = self.up if self.down is None else self.down
        cycle, in_cycle = divmod(progress, self.up + down)
        height = in_cycle / self.up if in_cycle <= self.up else (self.up + down - in_cycle) / down
        scale = math.pow(0.5, cycle) if self.mode == "triangular2" else math.pow(self.gamma, progress)
        return _interpolate(self.low, 1.0, height * scale)


def _points(points: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    try:
        return tuple(sorted((at, 0.0 + factor) for at, factor in dict(points).items()))
    except (TypeError, ValueError):
        raise TypeError(f"piecewise: {points!r}, but it takes points, such as {{0: 1.0, 100: 0.1}}") from None


@attrs.frozen(repr=False)
class piecewise(Schedule):
    """Interpolate linearly between the points {progress: factor}; hold the first before and the last after them.

    >>> [piecewise({1: 1.0, 3: 0.5})(i) for i in range(5)]
    [1.0, 1.0, 0.75, 0.5, 0.5]
    """

    points: tuple[tuple[int, float], ...] = attrs.field(converter=_points, repr=lambda points: repr(dict(points)))

    def __attrs_post_init__(self) -> None:
        valid = [isinstance(at, int) and at >= 0 and 0 <= factor < math.inf for at, factor in self.points]
        if len(valid) < 2 or not all(valid):
            wanted = "two points or more, each at a whole number from 0 and with a finite factor from 0"
            raise ValueError(f"piecewise: {dict(self.points)}, but it takes {wanted}")

    @property
    def length(self) -> int:
        return self.points[-1][0]

    @property
    def span(self) -> tuple[int, int | None]:
        return self.length, None

    def at(self, progress: float) -> float:
        return _through(self.points, progress, _interpolate)


def _through(points: Iterable[tuple[float, float]], progress: float, between: Between) -> float:
    for (start, first), (end, last) in pairwise(points):
        if progress < end:
            return between(first, last, (progress - start) / (end - start))
    return last


def _interpolate(start: float, end: float, share: float) -> float:
    # A weighted mean is exact at both ends; start + share * (end - start) is not.
    share = min(max(share, 0.0), 1.0)
    return start * (1 - share) + end * share


def _half_cosine(start: float, end: float, share: float) -> float:
    return _interpolate(start, end, (1 - math.cos(math.pi * min(share, 1.0))) / 2)
