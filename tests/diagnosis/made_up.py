"""Made-up curves of trainings: healthy ones at random, and what the rules see of given ones."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from fsm_train.diagnosis.curves import FinishedEpoch, Observations, ThinnedSeries
from fsm_train.diagnosis.findings import Evidence
from fsm_train.diagnosis.spikes import OF_FALL, SpikeWatch


def observations_of(**curves: Sequence[float]) -> Observations:
    """What a log would say of these metrics, one value an epoch."""
    epochs: ThinnedSeries[FinishedEpoch] = ThinnedSeries()
    watches = {name: SpikeWatch(OF_FALL["epoch"]) for name in curves}
    nonfinite: dict[str, Evidence] = {}
    for i, values in enumerate(zip(*curves.values(), strict=True)):
        metrics = dict(zip(curves, values, strict=True))
        epochs.add(FinishedEpoch(i + 1, metrics, line=3 * i + 5, iteration=10 * (i + 1)))
        for name, value in metrics.items():
            if math.isfinite(value):
                watches[name].see(Evidence(name, value, i + 1, 3 * i + 5))
            else:
                nonfinite.setdefault(name, Evidence(name, value, i + 1, 3 * i + 5))
    spikes = {name: watch.highest for name, watch in watches.items() if watch.highest is not None}
    return Observations(tuple(epochs), spikes=spikes, nonfinite=nonfinite)


def healthy(chance: random.Random) -> Mapping[str, list[float]]:
    """The losses of a healthy training, drawn at random: both fall, exponentially or as a power, to a floor.

    The validation ends a little above the training, by 0 to 30% of what was learned. Noise is normal, and up to 5% of
    what was learned from epoch to epoch; it shrinks with the loss in one of two trainings.
    """
    epochs = chance.choice([6, 8, 10, 15, 20, 30, 50, 100, 200, 400])
    learned, floor = 10 ** chance.uniform(-3, 3), chance.uniform(-1, 2)
    pace = epochs / chance.uniform(1, 8)
    is_power, shrinks = chance.random() < 0.5, chance.random() < 0.5
    spread = {"train_loss": chance.uniform(0, 0.03), "valid_loss": chance.uniform(0, 0.05)}
    gap = chance.uniform(0, 0.3)

    def value(name: str, epoch: int) -> float:
        left = (1 + epoch / (0.2 * pace)) ** -1.0 if is_power else math.exp(-epoch / pace)
        shift = gap * (1 - left) if name == "valid_loss" else 0.0
        noise = spread[name] * (max(left, 0.1) if shrinks else 1.0) * chance.gauss(0, 1)
        return learned * (floor + left + shift + noise)

    return {name: [value(name, epoch) for epoch in range(epochs)] for name in spread}


def flat(chance: random.Random) -> Mapping[str, list[float]]:
    """A training loss that does not fall: noise around a level."""
    unit, level = 10 ** chance.uniform(-3, 3), chance.uniform(-1, 3)
    epochs = chance.choice([6, 8, 10, 15, 20, 30, 50, 100])
    return {"train_loss": [unit * (level + chance.gauss(0, 0.05)) for _ in range(epochs)]}


def overfitted(chance: random.Random) -> Mapping[str, list[float]]:
    """A validation that rises from 15 to 50% of the training on, by 0.2 to 1.5 of what was learned."""
    epochs = chance.choice([15, 20, 30, 50, 100])
    pace, best = epochs / chance.uniform(3, 8), chance.uniform(0.15, 0.5) * epochs
    rise, noise = chance.uniform(0.2, 1.5), chance.uniform(0, 0.03)
    past = [max(0.0, epoch - best) for epoch in range(epochs)]
    return {
        "train_loss": [math.exp(-epoch / pace) + chance.gauss(0, noise / 2) for epoch in range(epochs)],
        "valid_loss": [
            math.exp(-min(epoch, best) / pace) + 0.1 + over / (epochs - best) * rise + chance.gauss(0, noise)
            for epoch, over in enumerate(past)
        ],
    }


def apart(chance: random.Random) -> Mapping[str, list[float]]:
    """A validation that is no better than guessing from the first epoch on, and gets worse by 0 to 3."""
    epochs = chance.choice([6, 8, 10, 15, 20, 30, 50, 100])
    pace, rise, noise = epochs / chance.uniform(2, 8), chance.uniform(0, 3), chance.uniform(0, 0.05)
    return {
        "train_loss": [math.exp(-epoch / pace) + chance.gauss(0, noise / 2) for epoch in range(epochs)],
        "valid_loss": [1.1 + rise * epoch / epochs + chance.gauss(0, noise) for epoch in range(epochs)],
    }


def spiky(chance: random.Random) -> Mapping[str, list[float]]:
    """A healthy training with one jump of 0.5 to 3 times what it learns."""
    while len((curves := healthy(chance))["train_loss"]) < 15:
        continue
    losses = curves["train_loss"]
    where = chance.randrange(9, len(losses) - 2)
    losses[where] += chance.uniform(0.5, 3) * (losses[0] - losses[-1])
    return curves
