"""A validation outside of a run: no callbacks, no counters, no log.

Rule of this file: the operations are those of the table's validation, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import attrs

from .core.arguments import check_workload
from .core.phase import Phase
from .core.under_way import evaluation_under_way
from .core.values import FrozenMap
from .core.workload import Workload
from .interpreter import start


def evaluate(workload: Workload) -> Mapping[str, float]:
    """Validate once, and return the metrics: valid_loss, valid_accuracy, …

    The model is as before afterwards, module by module, and so are the random generators. In a loop over
    `iterate` the batch under way is left alone.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> evaluate(Scripted(valid_loss=0.25, valid_accuracy=0.9))
    {'valid_loss': 0.25, 'valid_accuracy': 0.9}

    Raises:
        ValueError: the workload has no validation data.
        WorkloadError: a validation or another evaluation of it is under way, or a run in another thread.
    """
    check_workload(workload, "evaluate({})")
    if not workload.has_valid:
        raise ValueError("there is no validation data: give the workload some (valid=…)")
    state = attrs.evolve(start(workload, epochs=0), phase=Phase.VALID_BEGIN, workload=None)
    with evaluation_under_way(workload) as beside_a_run, workload.set_aside() if beside_a_run else nullcontext():
        try:
            workload.open_valid(state)
            while (counts := workload.fetch_valid()) is not None:
                if counts:
                    workload.evaluate()
            return FrozenMap(workload.measure_valid(state))
        except BaseException:
            workload.abandon(state)
            raise
