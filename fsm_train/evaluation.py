"""A validation outside of a run: no callbacks, no counters, no log.

Rule of this file: the operations are those of the table's validation, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from .core.arguments import check_workload
from .core.phase import Phase
from .core.values import FrozenMap
from .core.workload import Workload
from .interpreter import start


def evaluate(workload: Workload) -> Mapping[str, float]:
    """Validate once, and return the metrics: valid_loss, valid_accuracy, …

    The model is as before afterwards, module by module, and so are the random generators.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> evaluate(Scripted(valid_loss=0.25, valid_accuracy=0.9))
    {'valid_loss': 0.25, 'valid_accuracy': 0.9}

    Raises:
        ValueError: the workload has no validation data.
    """
    check_workload(workload, "evaluate({})")
    if not workload.has_valid:
        raise ValueError("there is no validation data: give the workload some (valid=…)")
    state = attrs.evolve(start(workload, epochs=0), phase=Phase.VALID_BEGIN, workload=None)
    workload.open_valid(state)
    try:
        while workload.fetch_valid() is not None:
            workload.evaluate()
    except BaseException:
        workload.abandon(state)
        raise
    return FrozenMap(workload.measure_valid(state))
