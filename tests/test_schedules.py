"""Schedules: their closed forms, how they combine, how they are shown, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import attrs
import pytest
import torch
from torch.optim import lr_scheduler

from fsm_train.schedules import (
    Absolute,
    Schedule,
    absolute,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    linear,
    multistep,
    one_cycle,
    piecewise,
    polynomial,
    step,
    time_decay,
    warmup,
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (linear(1 / 3, 1, 4), [1 / 3, 0.5, 2 / 3, 5 / 6, 1, 1]),
        (warmup(3, start=0.1).then(exponential(0.5)), [0.1, 0.4, 0.7, 1, 0.5]),
        (exponential(rate=math.log(2)), [1, 0.5, 0.25, 0.125]),
        (exponential(rate=0), [1, 1]),
        (time_decay(0.5), [1, 1 / 1.5, 1 / 2, 1 / 2.5]),
        (step(2, drop=0.5), [1, 1, 0.5, 0.5, 0.25]),
        (polynomial(4, power=2, floor=0.2), [1, 0.65, 0.4, 0.25, 0.2, 0.2]),
        (piecewise({2: 1, 0: 0.5, 4: 0}), [0.5, 0.75, 1, 0.5, 0, 0]),
        (piecewise([(1, 0.2), (2, 0.4)]), [0.2, 0.2, 0.4, 0.4]),
        (multistep(2), [1, 1, 0.1, 0.1]),
        (constant(), [1, 1, 1]),
    ],
    ids=repr,
)
def test_the_closed_form(schedule: Schedule, expected: list[float]) -> None:
    """The values are those of the formula, worked out by hand."""
    assert [schedule(progress) for progress in range(len(expected))] == pytest.approx(expected)


def test_cosine_holds_its_floor() -> None:
    """After its end a cosine stays at the floor exactly, where that of torch rises again."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 4)
    torchs = []
    for _ in range(8):
        torchs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    assert [cosine(4, floor=0.1)(progress) for progress in (4, 5, 8, 10**9)] == [0.1] * 4
    assert torchs[6] > torchs[4]


def test_one_cycle_peaks_at_one_and_keeps_its_last_value() -> None:
    """Of ten steps the third has the full value and the tenth the lowest, which stays."""
    values = [one_cycle(10)(progress) for progress in range(13)]

    assert values[:4] == pytest.approx([0.04, 0.52, 1, 0.950484], abs=1e-6)
    assert values[2] == 1
    assert values[9:] == [pytest.approx(4e-6)] * 4


@pytest.mark.parametrize("length", [1, 2, 3])
def test_one_cycle_too_short_to_rise_begins_on_its_way_down(length: int) -> None:
    """A cycle of so few steps that its peak is before the first ends at its lowest value, as torch's does."""
    values = [one_cycle(length)(progress) for progress in range(length)]

    assert values[-1] == pytest.approx(4e-6)
    assert values == sorted(values, reverse=True)
    assert values[0] < 1


def test_progress_may_be_a_fraction() -> None:
    """Between two whole numbers a schedule has the value in between."""
    assert warmup(2, start=0)(0.5) == 0.25
    assert cosine_restarts(2)(2.5) == cosine_restarts(2)(0.5)
    assert multistep([1])(0.5) == 1


@pytest.mark.parametrize("progress", [-1, math.nan, math.inf])
def test_progress_counts_from_zero(progress: float) -> None:
    """Progress that is no count is refused and named."""
    with pytest.raises(ValueError, match=rf"progress={progress}: .* counts from 0"):
        constant()(progress)


@pytest.mark.parametrize(
    ("schedule", "length"),
    [
        (constant(), None),
        (constant(length=3), 3),
        (warmup(3), 3),
        (exponential(0.9), None),
        (step(3), None),
        (multistep([3]), None),
        (cosine_restarts(3), None),
        (cyclic(3), None),
        (piecewise({0: 1, 7: 0}), 7),
        (warmup(3).then(cosine(4)), 7),
        (warmup(3).then(exponential(0.9)), None),
        (exponential(0.9).then(cosine(4), after=5), 9),
        (warmup(3) * cosine(4), 4),
        (warmup(3) * constant(0.5), 3),
        (warmup(3) * exponential(0.9), None),
    ],
    ids=repr,
)
def test_the_length(schedule: Schedule, length: int | None) -> None:
    """A schedule says where it ends; a chain where its last one does, a product where its longest does."""
    assert schedule.length == length


def test_a_schedule_without_an_end_is_followed_only_after_something() -> None:
    """Nothing can come after what never ends, and the error says how to end it."""
    with pytest.raises(ValueError, match=r"exponential\(0\.5\) has no end: .*\.then\(cosine\(4\), after=1000\)"):
        exponential(0.5).then(cosine(4))

    assert exponential(0.5).then(cosine(4), after=2)(2) == 1


def test_after_cuts_short_or_holds() -> None:
    """With `after` a schedule is left before its end, or holds its last value until then."""
    early, late = linear(1, 0, 4).then(constant(), after=2), linear(1, 0, 4).then(constant(), after=6)

    assert [early(progress) for progress in range(4)] == [1, 0.75, 1, 1]
    assert [late(progress) for progress in range(3, 8)] == [0.25, 0, 0, 1, 1]


def test_after_counts_from_the_start_of_the_chain() -> None:
    """What a chain would have done after that progress is left out of it."""
    chain = warmup(3).then(cosine(4))

    assert chain.then(constant(0.5), after=5) == warmup(3).then(cosine(4).then(constant(0.5), after=2))
    assert chain.then(constant(0.5), after=3) == warmup(3).then(constant(0.5))
    assert chain.then(constant(0.5), after=2) == warmup(3).then(constant(0.5), after=2)


@pytest.mark.parametrize("after", [0, -1, 2.5, "3"])
def test_after_is_a_whole_number(after: Any) -> None:
    """A schedule that is left before it began is refused."""
    with pytest.raises(ValueError, match=rf"then: after={after!r}, but it takes a whole number from 1"):
        warmup(3).then(cosine(4), after=after)


@pytest.mark.parametrize("following", [0.1, cosine, absolute(0.1)])
def test_only_a_schedule_follows(following: Any) -> None:
    """Something that is no schedule is refused, and an absolute one is told where it belongs."""
    with pytest.raises(TypeError, match=r"cannot follow: give a schedule; absolute\(…\) goes around the whole chain"):
        warmup(3).then(following)


def test_constants_multiply() -> None:
    """However numbers and constants stand in a product, they are one number in it."""
    expected = 0.5 * warmup(3) * cosine(4)

    assert constant(0.25) * warmup(3) * 2 * cosine(4) == expected
    assert warmup(3) * (cosine(4) * 0.5) == expected
    assert constant(0.5) * 0.5 == constant(0.25)
    assert 1 * warmup(3) == warmup(3)
    assert expected(3) == pytest.approx(0.5 * cosine(4)(3))


@pytest.mark.parametrize("other", ["2", None, absolute(0.1)])
def test_only_schedules_and_numbers_multiply(other: Any) -> None:
    """A product with something else is a TypeError, from both sides."""
    with pytest.raises(TypeError):
        cosine(4) * other
    with pytest.raises(TypeError):
        other * cosine(4)


@pytest.mark.parametrize("negative", [-1, math.inf, math.nan])
def test_a_product_with_nonsense_is_refused(negative: float) -> None:
    """A number that is no factor is named when the product is made."""
    with pytest.raises(ValueError, match="it takes a finite number from 0"):
        cosine(4) * negative


def test_absolute_marks_the_value_itself() -> None:
    """A number, a schedule or a function is wrapped as it is; what is wrapped already stays."""
    assert absolute(0.1) == Absolute(constant(0.1))
    assert absolute(cosine(4)).schedule == cosine(4)
    assert absolute(absolute(cosine(4))) == absolute(cosine(4))
    assert absolute(lambda progress: 2 * progress)(3) == 6
    assert absolute(0.01 * cosine(4))(0) == 0.01


@pytest.mark.parametrize("value", ["0.1", None, cosine])
def test_absolute_takes_something_that_gives_values(value: Any) -> None:
    """What gives no value is refused, and so is a schedule that was not made yet."""
    with pytest.raises(TypeError, match="give a schedule, a number, or a function of progress"):
        absolute(value)


@pytest.mark.parametrize(
    ("schedule", "shown"),
    [
        (cosine(2000, floor=0.1), "cosine(2000, floor=0.1)"),
        (cosine(2000, floor=0.0), "cosine(2000)"),
        (constant(0.5, length=3), "constant(0.5, length=3)"),
        (constant(length=3), "constant(length=3)"),
        (linear(1, 0.1, 5), "linear(1, 0.1, 5)"),
        (exponential(rate=0.1), "exponential(rate=0.1)"),
        (step(30, 0.5), "step(30, drop=0.5)"),
        (multistep((30, 60)), "multistep([30, 60])"),
        (piecewise({100: 0.1, 0: 1}), "piecewise({0: 1.0, 100: 0.1})"),
        (warmup(3).then(cosine(4)).then(constant(0.1)), "warmup(3).then(cosine(4)).then(constant(0.1))"),
        (exponential(0.9).then(cosine(4), after=5), "exponential(0.9).then(cosine(4), after=5)"),
        (warmup(3) * cosine(4) * 0.5, "0.5 * warmup(3) * cosine(4)"),
        ((warmup(3) * 0.5).then(cosine(4)), "(0.5 * warmup(3)).then(cosine(4))"),
        (absolute(0.1), "absolute(constant(0.1))"),
    ],
    ids=str,
)
def test_it_reads_like_the_call_that_made_it(schedule: Schedule, shown: str) -> None:
    """A schedule prints as the call that makes it, without what is the default anyway."""
    assert repr(schedule) == shown


def test_it_is_a_value() -> None:
    """Schedules compare and hash by their settings, survive pickling, and cannot be changed."""
    schedule = warmup(3).then(cosine(4)) * piecewise({0: 1, 5: 0.5})

    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert len({cosine(4), cosine(4, floor=0.0), polynomial(4)}) == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        cosine(4).floor = 0.1  # type: ignore[misc]


def test_one_of_your_own() -> None:
    """A frozen record that says its value at each progress chains and multiplies like all others."""

    @attrs.frozen
    class inverse_root(Schedule):  # noqa: N801 -- it reads like the others
        k: float

        def at(self, progress: float) -> float:
            return 1 / math.sqrt(1 + self.k * progress)

    schedule = (2 * inverse_root(1.0)).then(cosine(4), after=4)

    assert [schedule(progress) for progress in (0, 3, 4)] == [2, 1, 1]
    assert inverse_root(1.0).length is None


COUNT, FINITE, SHARE = "a whole number from 1", "a finite number from 0", "a number from 0 to 1"


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: cosine(0), ValueError, f"cosine: length=0, but it takes {COUNT}"),
        (lambda: cosine(2.5), TypeError, f"cosine: length=2.5, but it takes {COUNT}"),
        (lambda: cosine(True), TypeError, f"cosine: length=True, but it takes {COUNT}"),
        (lambda: cosine("4"), TypeError, f"cosine: length='4', but it takes {COUNT}"),
        (lambda: cosine(4, floor=1.5), ValueError, f"cosine: floor=1.5, but it takes {SHARE}"),
        (lambda: cosine_restarts(4, factor=0), ValueError, f"cosine_restarts: factor=0, but it takes {COUNT}"),
        (lambda: constant(-1), ValueError, f"constant: factor=-1, but it takes {FINITE}"),
        (lambda: constant(math.nan), ValueError, f"constant: factor=nan, but it takes {FINITE}"),
        (lambda: constant(length=0), ValueError, f"constant: length=0, but it takes {COUNT}"),
        (lambda: warmup(4, start=2), ValueError, f"warmup: start=2, but it takes {SHARE}"),
        (lambda: linear(1, math.inf, 4), ValueError, f"linear: end=inf, but it takes {FINITE}"),
        (lambda: exponential(), ValueError, "exponential(): give either gamma, as in gamma ** t, or rate="),
        (lambda: exponential(0.5, rate=1), ValueError, "exponential(0.5, rate=1): give either gamma"),
        (lambda: exponential(-0.5), ValueError, f"exponential: gamma=-0.5, but it takes {FINITE}"),
        (lambda: step(2, drop=10), ValueError, f"step: drop=10, but it takes {SHARE}, such as 0.1 to divide by ten"),
        (lambda: multistep([]), ValueError, "multistep: milestones=[], but it takes some in ascending order"),
        (lambda: multistep([3, 3]), ValueError, "multistep: milestones=[3, 3], but it takes some in ascending order"),
        (lambda: multistep([0.5]), TypeError, f"multistep: milestones=0.5, but it takes {COUNT}"),
        (lambda: time_decay(-1), ValueError, f"time_decay: k=-1, but it takes {FINITE}"),
        (lambda: polynomial(4, power=0), ValueError, "polynomial: power=0, but it takes a finite number above 0"),
        (lambda: one_cycle(4, warmup=1), ValueError, "one_cycle: warmup=1, but it takes the part of the length before"),
        (lambda: one_cycle(4, shape="cos"), ValueError, "one_cycle: shape='cos', but it takes 'cosine' or 'linear'"),
        (lambda: one_cycle(4, three_phase=1), TypeError, "'three_phase' must be <class 'bool'>"),
        (lambda: one_cycle(4, warmup=0.6, three_phase=True), ValueError, "three phases need it twice: give at most"),
        (lambda: cyclic(4, mode="up"), ValueError, "cyclic: mode='up', but it takes 'triangular', 'triangular2' or"),
        (lambda: cyclic(4, mode=None), TypeError, "cyclic: mode=None, but it takes 'triangular', 'triangular2' or"),
        (lambda: cyclic(4, gamma=0.9), ValueError, "gamma=0.9 has a meaning only with mode='exp_range'"),
        (lambda: cyclic(4, down=0), ValueError, f"cyclic: down=0, but it takes {COUNT}"),
        (lambda: piecewise({0: 1}), ValueError, "piecewise: {0: 1.0}, but it takes two points or more"),
        (lambda: piecewise({0: 1, 2.5: 0}), ValueError, "each at a whole number from 0"),
        (lambda: piecewise({-1: 1, 2: 0}), ValueError, "each at a whole number from 0"),
        (lambda: piecewise({0: 1, 2: math.nan}), ValueError, "with a finite factor from 0"),
        (lambda: piecewise(3), TypeError, "piecewise: 3, but it takes points, such as {0: 1.0, 100: 0.1}"),
        (lambda: piecewise({0: 1, 2: "0"}), TypeError, "but it takes points, such as {0: 1.0, 100: 0.1}"),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], Schedule], error: type[Exception], sentence: str) -> None:
    """A bad setting is refused on the spot, by a sentence with what was found and what is wanted."""
    with pytest.raises(error) as raised:
        make()

    assert sentence in str(raised.value)


def test_restarts_are_where_the_periods_end() -> None:
    """Cycles of 2, 4, 8, … begin at the full value, and nothing else has it."""
    full = [progress for progress in range(62) if cosine_restarts(2, factor=2)(progress) == 1]

    assert full == [0, 2, 6, 14, 30]
    assert [later - earlier for earlier, later in pairwise(full)] == [2, 4, 8, 16]
