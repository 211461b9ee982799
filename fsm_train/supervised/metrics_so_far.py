"""What the training has measured of an epoch that is not over.

Rule of this file: looking changes nothing. What is measured at the end of the epoch is as if nobody had looked.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

from ..data.generators import Generators
from .meters import Meters
from .object_metrics import ObjectMetric


def results_so_far(meters: Meters) -> Mapping[str, float]:
    """The metrics of the batches so far, by name. One that cannot be computed of so few batches is left out."""
    loss = meters.loss.result()
    results = {} if loss is None else {f"{meters.split}_loss": loss}
    parts = {f"{meters.split}_{name}": part.result() for name, part in meters.parts.items()}
    results |= {name: mean for name, mean in parts.items() if mean is not None}
    before = Generators.now(())  # some metrics draw samples
    try:
        for name, metric in meters.metrics.items():
            try:
                with warnings.catch_warnings(action="ignore"):
                    # Some objects remember that they have computed, or what: a copy computes.
                    looked_at = _copied(metric) if isinstance(metric, ObjectMetric) else metric
                    results |= dict(looked_at.results(f"{meters.split}_{name}"))
            except Exception:  # the user's own, which raises it again at the end of the epoch if it is one then too
                continue
    finally:
        before.put_back()
    return results


def _copied(metric: ObjectMetric) -> ObjectMetric:
    copied = copy.copy(metric)
    copied.metric = copy.deepcopy(metric.metric, dict(metric.shared))
    return copied
