"""Each rule on curves that have the illness, and on curves that only look so."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.diagnosis.curves import Count, FinishedEpoch, Observations
from fsm_train.diagnosis.findings import Evidence
from fsm_train.diagnosis.loss_rules import training_curve
from fsm_train.diagnosis.rules import RULES, judged
from fsm_train.diagnosis.spikes import is_spike
from fsm_train.diagnosis.step_rules import costs_of
from tests.how_long import of_all

from .made_up import apart, flat, healthy, observations_of, overfitted, spiky


def falling(count: int, start: float = 2.0, end: float = 0.2, noise: float = 0.0, seed: int = 0) -> list[float]:
    """An exponential from start nearly to end, with normal noise."""
    chance = random.Random(seed)
    return [end + (start - end) * math.exp(-4 * i / count) + noise * chance.gauss(0, 1) for i in range(count)]


def level(count: int, at: float = 2.3, noise: float = 0.01, seed: int = 0) -> list[float]:
    chance = random.Random(seed)
    return [at + noise * chance.gauss(0, 1) for _ in range(count)]


def facts(name: str, values: Sequence[float]) -> Mapping[str, tuple[Evidence, ...]]:
    return {name: tuple(Evidence(name, value, 1 + i // 8, 4 + i) for i, value in enumerate(values))}


def timed(seconds: Sequence[float], batches: Sequence[int]) -> Observations:
    """Epochs that take so many seconds, with so many batches."""
    ends = [FinishedEpoch(0, {}, elapsed=0.0)]
    for i, (time, count) in enumerate(zip(seconds, batches, strict=True), 1):
        elapsed = (ends[-1].elapsed or 0.0) + time
        ends.append(FinishedEpoch(i, {}, 3 * i, ends[-1].iteration + count, elapsed))
    return Observations(tuple(ends[1:]))


SINE = [math.sin(3.0 * i) for i in range(60)]


def untrained(loss: float, **curves: Sequence[float]) -> Observations:
    """Curves of epochs, and the loss of the first batch and of later ones."""
    later = facts("loss", [curves["train_loss"][-1] + 0.1 * x for x in SINE])
    return attrs.evolve(observations_of(**curves), facts=later, untrained=Evidence("loss", loss, 1, 4))


FIRST = Evidence("lr", 0.0, 2, 9)

ILL: Mapping[str, Sequence[Observations]] = {
    "not finite": [
        observations_of(train_loss=[1.0, 0.9, nan, 0.8]),
        observations_of(valid_loss=[1.0, inf]),
        Observations(nonfinite={"grad_norm": Evidence("grad_norm", inf, 1, 5)}),
    ],
    "rate at zero": [
        Observations(zero_rate=Count(90, 100, first=FIRST)),
        Observations(zero_rate=Count(3, 4, first=FIRST)),
    ],
    "steps held back": [
        Observations(held_back=Count(20, 100, late=10, first=FIRST)),
        Observations(stepless=Count(1, 3, first=FIRST, unit="epoch")),
    ],
    "loss does not fall": [
        observations_of(train_loss=level(20)),
        observations_of(train_loss=[2.3] * 5),
        observations_of(train_loss=[-5.0] * 6),
        observations_of(train_loss=[1.0 + 0.1 * i for i in range(12)]),
        untrained(2.3, train_loss=[40.0, *level(6, at=2.4, noise=0.05)]),
        Observations(facts=facts("loss", level(60, noise=0.1))),  # one epoch
        untrained(2.3, train_loss=[40.0, 9.0, 5.0, *level(12, at=2.4, noise=0.05)]),
    ],
    "spikes": [
        observations_of(train_loss=[*falling(10), 3.0, *falling(5, 0.2, 0.1)]),
        observations_of(valid_loss=[*falling(30, noise=0.02)[:15], 2.5, *falling(30, noise=0.02)[15:]]),
        Observations(facts=facts("loss", falling(12)), spikes={"loss": Evidence("loss", 9.0, 2, 9)}),
    ],
    "validation worse from the start": [
        observations_of(train_loss=falling(12), valid_loss=[2.4 + 0.3 * i for i in range(12)]),
        observations_of(train_loss=falling(12, noise=0.02), valid_loss=level(12, at=3.0, noise=0.05)),
    ],
    "overfitting": [
        observations_of(
            train_loss=falling(30), valid_loss=[*falling(10, 2.0, 0.8), *[0.85 + 0.03 * i for i in range(20)]]
        ),
        observations_of(
            train_loss=falling(60, noise=0.02),
            valid_loss=[a + 0.02 * i for i, a in enumerate(falling(60, 2.0, 0.5, noise=0.03))],
        ),
    ],
    "gradients vanish": [
        Observations(facts={**facts("grad_norm_first", [1e-9] * 20), **facts("grad_norm_last", [0.5] * 20)}),
        Observations(facts={**facts("grad_norm_first", [0.0] * 20), **facts("grad_norm", [0.5] * 20)}),
        attrs.evolve(observations_of(train_loss=[2.3] * 10), facts=facts("grad_norm", [1e-8] * 20)),
    ],
    "gradients explode": [
        Observations(facts=facts("grad_norm", [1.0 + 0.2 * x for x in SINE[:20]] + [300.0, 5.0, 2000.0])),
        Observations(facts=facts("grad_norm", [130.0, 2200.0, 6.5e5]), nonfinite={"loss": Evidence("loss", nan, 1, 9)}),
        Observations(facts=facts("grad_norm", [1.0] * 20 + [1e3]), nonfinite={"loss": Evidence("loss", nan, 3, 30)}),
    ],
    "epochs cost more and more": [
        timed([10.0 + 1.0 * i for i in range(20)], [100] * 20),
        timed([9.0, *[10.0 + 2.0 * i + x for i, x in enumerate(SINE[:15])]], [100] * 16),
    ],
}
"""By illness, what a log says of trainings that have it."""

NEAR: Mapping[str, Sequence[Observations]] = {
    "not finite": [observations_of(train_loss=[1e308, -1e308, 5e-324])],
    "rate at zero": [
        Observations(zero_rate=Count(50, 100, first=FIRST)),  # a cosine that ends half way, and no more than half
        Observations(zero_rate=Count(1, 100, first=FIRST)),  # the first step of a warmup
        Observations(zero_rate=Count(0, 100)),
        Observations(zero_rate=Count(3, 3, first=FIRST)),  # too few to say
    ],
    "steps held back": [
        Observations(held_back=Count(5, 20, late=0, first=FIRST)),  # the scaler looks for its scale
        Observations(held_back=Count(2, 8, late=2, first=FIRST)),
        Observations(held_back=Count(8, 1000, late=6, first=FIRST)),
        Observations(held_back=Count(0, 0)),
    ],
    "loss does not fall": [
        observations_of(train_loss=[2.3 - 0.001 * i for i in range(6)]),  # slowly
        observations_of(train_loss=falling(20, noise=0.2)),  # in much noise
        observations_of(train_loss=[2.3, *level(20, at=0.5)]),  # it has learned all in the first epoch
        untrained(2.9, train_loss=level(10, at=0.9)[:1] + level(9, at=0.8)),
        untrained(2.3, train_loss=[2.5, 2.4, 2.32, 2.2, 2.05, 1.9]),  # a slow start
        observations_of(train_loss=[2.3] * 4),  # too few to say
        Observations(facts=facts("loss", level(39))),
        Observations(facts=facts("loss", falling(200, noise=0.3))),  # one epoch
        Observations(facts=facts("loss", falling(40, noise=0.1))),
        attrs.evolve(observations_of(train_loss=level(20)), has_turns=True),  # a GAN
    ],
    "spikes": [
        observations_of(train_loss=[*falling(10), *falling(10, 3.0, 0.5)]),  # another task: it stays up
        observations_of(train_loss=level(60, noise=0.3)),
        observations_of(train_loss=[3.0, *falling(10)]),  # the first value is no spike
        observations_of(train_loss=[*falling(40), 0.25, *falling(5, 0.2, 0.19)]),  # small beside what was learned
    ],
    "validation worse from the start": [
        observations_of(train_loss=falling(12), valid_loss=falling(12, 2.1, 0.9)),  # behind, and learning
        observations_of(
            train_loss=[0.5, *level(11, at=0.49)], valid_loss=level(12, at=0.6)
        ),  # little was learned by anyone
        observations_of(
            train_loss=falling(12), valid_loss=[1.9, 1.2, *[1.0 + 0.2 * i for i in range(10)]]
        ),  # overfitting
        observations_of(train_loss=falling(12), valid_loss=[1.0, *falling(11, 0.9, 0.5)]),
    ],
    "overfitting": [
        observations_of(train_loss=falling(30), valid_loss=[*falling(10, 2.0, 0.8), *level(20, at=0.81)]),  # a plateau
        observations_of(train_loss=falling(30), valid_loss=[*falling(27, 2.0, 0.5), 0.6, 0.62, 0.63]),  # too few to say
        observations_of(  # both rise, since the rate does
            train_loss=[*falling(15), *[0.3 + 0.02 * i for i in range(15)]],
            valid_loss=[*falling(15), *[0.4 + 0.02 * i for i in range(15)]],
        ),
        observations_of(
            train_loss=falling(30), valid_loss=[*falling(15, 2.0, 0.5), *[0.54 + 0.001 * i for i in range(15)]]
        ),
    ],
    "gradients vanish": [
        Observations(facts={**facts("grad_norm_first", [0.01] * 20), **facts("grad_norm_last", [0.5] * 20)}),
        attrs.evolve(
            observations_of(train_loss=falling(10, end=0.001)), facts=facts("grad_norm", falling(20, 1.0, 1e-8))
        ),
        attrs.evolve(observations_of(train_loss=[2.3] * 10), facts=facts("grad_norm", [0.2] * 20)),
        Observations(facts=facts("grad_norm", [0.0] * 20)),  # of what loss?
    ],
    "gradients explode": [
        Observations(facts=facts("grad_norm", [1.0] * 20 + [500.0] + [1.0] * 5)),  # one batch
        Observations(facts=facts("grad_norm", falling(40, 1e4, 0.1))),  # large at first only
        Observations(facts=facts("grad_norm", [100.0] * 8 + [0.1] * 30 + [50.0] * 3)),  # no larger than at first
        Observations(
            facts=facts("grad_norm", [1.0] * 20), nonfinite={"loss": Evidence("loss", nan, 1, 9)}
        ),  # NaN in the data
        Observations(facts=facts("grad_norm", [0.0] * 20 + [1.0])),
    ],
    "epochs cost more and more": [
        timed([10.0 * count for count in range(1, 21)], [100 * count for count in range(1, 21)]),  # more batches
        timed([10.0] * 12 + [90.0] + [10.0] * 7, [100] * 20),  # one slow epoch
        timed([60.0] + [10.0 + x for x in SINE[:19]], [100] * 20),  # the first one warms up
        timed([10.0 + 0.1 * i for i in range(20)], [100] * 20),  # hardly more
        timed([10.0] * 10 + [30.0] * 10, [0] * 20),  # no batches to divide by
    ],
}
"""By illness, what only looks so."""


@pytest.mark.parametrize(("illness", "training"), [(illness, training) for illness in ILL for training in ILL[illness]])
def test_illness_is_found(illness: str, training: Observations) -> None:
    """With its evidence, values of this very training, and with what to try."""
    found = {finding.illness: finding for finding in judged(training)}[illness]

    known = [point for name in training.metrics for point in training.curve(name)]
    known += [point for points in training.facts.values() for point in points]
    known += training_curve(training)
    known += [*training.nonfinite.values(), *training.spikes.values(), training.untrained, FIRST, *costs_of(training)]
    assert found.evidence
    assert all(point in known for point in found.evidence)
    assert found.advice
    assert found.sentence.startswith(f"{illness} ({found.certainty}): ")


@pytest.mark.parametrize(
    ("illness", "training"), [(illness, training) for illness in NEAR for training in NEAR[illness]]
)
def test_near_miss_is_not_found(illness: str, training: Observations) -> None:
    """What only looks like the illness is none."""
    assert illness not in {finding.illness for finding in judged(training)}


def test_a_training_of_one_epoch_is_judged_by_its_batches() -> None:
    """By their medians, of about twenty parts."""
    curve = training_curve(Observations(facts=facts("loss", level(1000, noise=0.5))))

    assert len(curve) == 20
    assert (curve[0].name, curve[0].line, curve[-1].line) == ("loss (median of 50)", 53, 1003)


def test_each_rule_has_both() -> None:
    """There is no rule without a curve that has the illness, and one that only looks so."""
    assert ILL.keys() == NEAR.keys() == RULES.keys()


@pytest.mark.parametrize("illness", RULES)
def test_a_rule_that_knows_nothing_finds_nothing(illness: str) -> None:
    """Also where it is asked all the same, though what it needs is missing."""
    assert RULES[illness].look(Observations()) is None


def test_a_healthy_training_has_no_finding() -> None:
    """And nothing of its curves is left unjudged."""
    diagnosis = judged(
        observations_of(train_loss=falling(20, noise=0.02), valid_loss=falling(20, 2.0, 0.3, noise=0.03))
    )

    assert (diagnosis.findings, len(diagnosis)) == ((), 0)
    assert "not judged: gradients vanish, gradients explode (there are fewer than 8 norms" in str(diagnosis)
    assert {"overfitting", "loss does not fall", "spikes"}.isdisjoint(diagnosis.not_judged)


def test_spikes_are_looked_for_in_losses_alone() -> None:
    """Where only norms of gradients were recorded, that is said, and what to record; and so with turns."""
    norms, losses = Observations(facts=facts("grad_norm", level(50))), Observations(facts=facts("loss", falling(50)))
    of_a_player = Observations(facts=facts("loss of G", falling(50)), has_turns=True)

    assert judged(norms).not_judged["spikes"].endswith("record('loss')")
    assert "spikes" in judged(of_a_player).not_judged
    assert "spikes" not in judged(losses).not_judged


@pytest.mark.long
def test_false_alarms_are_rare() -> None:
    """At most 1 of 200 healthy trainings that are drawn at random is said to be ill, whatever its unit and noise."""
    count = of_all(5_000, few=200)
    alarms = [list(judged(observations_of(**healthy(random.Random(seed))))) for seed in range(count)]

    assert sum(map(bool, alarms)) <= count / 200


@pytest.mark.long
@pytest.mark.parametrize(
    ("draw", "illness"),
    [
        (flat, "loss does not fall"),
        (overfitted, "overfitting"),
        (apart, "validation worse from the start"),
        (spiky, "spikes"),
    ],
)
def test_most_ill_trainings_are_found(draw: Callable[[random.Random], Mapping[str, list[float]]], illness: str) -> None:
    """At least 85 of 100 that are drawn at random."""
    count = of_all(2_000, few=60)
    found = [_illnesses(observations_of(**draw(random.Random(seed)))) for seed in range(count)]

    assert sum(illness in {name for name, *_ in illnesses} for illnesses in found) >= 0.85 * count


@given(
    seed=st.integers(0, 2**32),
    ill=st.sampled_from(
        [training for illness in ("loss does not fall", "overfitting", "spikes") for training in ILL[illness]]
    ),
    shift=st.integers(-4, 4),
    power=st.integers(-6, 6),
)
def test_a_loss_in_another_unit_has_the_same_illness(seed: int, ill: Observations, shift: int, power: int) -> None:
    """Scaled by any power of two, and shifted by a few units of it: the same findings, healthy or ill."""
    for training in (ill, observations_of(**healthy(random.Random(seed)))):
        if not training.facts:
            names = training.metrics
            curves = {name: [epoch.metrics[name] for epoch in training.epochs] for name in names}
            scale = max(abs(value) for values in curves.values() for value in values)
            moved = {name: [(v + shift * scale) * 2.0**power for v in values] for name, values in curves.items()}
            assert _illnesses(observations_of(**moved)) == _illnesses(observations_of(**curves))


def _illnesses(training: Observations) -> list[tuple[Any, ...]]:
    return [(finding.illness, finding.certainty, finding.evidence[0].epoch) for finding in judged(training)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=11, max_size=19))
def test_a_spike_needs_room_on_both_sides(values: list[float]) -> None:
    """With too few values before or after it, nothing is a spike, and the lowest value never is."""
    assert not is_spike(values[:7], 1e9, values[-2:], values[0], 0.25)
    assert not is_spike(values, 1e9, values[-1:], values[0], 0.25)
    assert not is_spike(values, min(values), [0.0, 0.0], values[0], 0.25)


def test_several_validations_are_judged_one_by_one() -> None:
    """The one that overfits is named."""
    worse = [*falling(10, 2.0, 0.8), *[0.85 + 0.03 * i for i in range(20)]]
    training = observations_of(train_loss=falling(30), valid_clean_loss=falling(30, 2.0, 0.3), valid_noisy_loss=worse)

    (finding,) = judged(training)
    assert (finding.illness, finding.evidence[0].name) == ("overfitting", "valid_noisy_loss")
