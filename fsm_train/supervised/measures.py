"""Measures: functions of the whole training at the end of a validation, such as the accuracy of k nearest neighbours.

Rule of this file: whatever a measure draws, sets or reads, the training continues as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from ..core.arguments import kind_of
from ..core.errors import WorkloadError
from ..data.loaders import workers_aside
from ..data.sources import Sources
from .arguments import check_named
from .evaluations import BoundEvaluation
from .real_numbers import add_new, named_numbers
from .set_aside import undisturbed
from .training import Training

Taken = Callable[[Any], "torch.Tensor | float | Mapping[str, torch.Tensor | float]"]
"""A measure: of the `Supervised`, a number, or numbers by name."""


def check_measures(
    measures: Mapping[str, Taken], metrics: Collection[str], evaluations: Iterable[BoundEvaluation]
) -> Mapping[str, Taken]:
    """The measures, if each can be taken.

    Args:
        measures: by name.
        metrics: the names of the metrics of the training.
        evaluations: what a validation measures.

    Raises:
        TypeError: they are no mapping from names to functions.
        ValueError: one has the name of a metric.
        WorkloadError: one takes other arguments, or there is no validation.
    """
    evaluations = tuple(evaluations)
    measured = frozenset[str]().union(*(each.names() for each in evaluations))
    check_named("measures", measures, "'knn': lambda work: …", "work")
    for name, measure in measures.items():
        if not callable(measure):
            raise TypeError(f"the measure {name!r} is {kind_of(measure)}: give a function of the workload")
        if name == "loss" or name in metrics or f"valid_{name}" in measured:
            raise ValueError(f"a measure cannot be called {name!r}: valid_{name} is measured already")
    if measures and not evaluations:
        raise WorkloadError("measures are taken at the end of a validation, and there is no valid=: give some data")
    return dict(measures)


def take(work: Training, measures: Mapping[str, Taken], metrics: dict[str, float]) -> None:
    """Add what these measures give to the metrics, such as valid_knn. Each is taken in eval mode, without gradients.

    Raises:
        WorkloadError: one gives something else than numbers, or what is measured already.
        Exception: what a measure raised, with a note that names it.
    """
    work.inputs = work.target = work.output = None
    name, sources = "", Sources.now(work.train)
    try:
        for name, measure in measures.items():
            for module in work.modules.values():
                module.eval()
            with (
                torch.no_grad(),
                undisturbed(work),
                workers_aside(work.train, *(each.loader for each in work.evaluations)),
            ):
                value = measure(work)
            source = f"the measure {name!r}"
            add_new(metrics, named_numbers(f"valid_{name}", value, source), source)
    except Exception as error:
        error.add_note(f"Raised by the measure {name!r}, at the end of a validation.")
        raise
    finally:
        sources.put_back(work.train)
