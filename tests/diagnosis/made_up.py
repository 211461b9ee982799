"""Made-up curves of trainings: healthy ones at random, and what the rules see of given ones."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from fsm_train.diagnosis.curves import EpochSeen, Seen, Thinned
from fsm_train.diagnosis.findings import Evidence
from fsm_train.diagnosis.spikes import OF_FALL, SpikeWatch


def seen_of(**curves: Sequence[float]) -> Seen:
    """What a log would say of these metrics, one value an epoch."""
    epochs: Thinned[EpochSeen] = Thinned()
    watches = {name: SpikeWatch(OF_FALL["epoch"]) for name in curves}
    nonfinite: dict[str, Evidence] = {}
    for i, values in enumerate(zip(*curves.values(), strict=True)):
        metrics = dict(zip(curves, values, strict=True))
        epochs.add(EpochSeen(i + 1, metrics, line=3 * i + 5, iteration=10 * (i + 1)))
        for name, value in metrics.items():
            if math.isfinite(value):
                watches[name].see(Evidence(name, value, i + 1, 3 * i + 5))
            else:
                nonfinite.setdefault(name, Evidence(name, value, i + 1, 3 * i + 5))
    spikes = {name: watch.highest for name, watch in watches.items() if watch.highest is not None}
    return Seen(tuple(epochs), spikes=spikes, nonfinite=nonfinite)


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
