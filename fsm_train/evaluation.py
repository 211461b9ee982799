"""A validation outside of a run: no callbacks, no counters, no log.

Rule of this file: the operations are those of the table's validation, in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import attrs

from .core.arguments import check_workload, kind_of, takes_by_name
from .core.checks import NO_TEXT, is_text
from .core.errors import WorkloadError
from .core.phase import Phase
from .core.state import State
from .core.under_way import evaluation_under_way
from .core.values import FrozenMap
from .core.workload import Workload
from .interpreter import start

OF_VALID = "valid_"
"""What the names of the metrics of a validation begin with."""


@takes_by_name
def evaluate(
    workload: Workload, data: Iterable[Any] | None = None, *, prefix: str | None = None
) -> Mapping[str, float]:
    """Measure the model once, with the loss and the metrics of the training: test_loss, test_accuracy, …

    Without `data` it is measured on the validation data: valid_loss, valid_accuracy, …

    Nothing of the training changes: weights, the modes of modules, random generators, the place in the data, the
    metrics so far. In a loop over `iterate` the batch under way is left alone. The weights are those that the model
    has now; no callback is asked, so that a `limit` of batches does not count.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> evaluate(Scripted(valid_loss=0.25, valid_accuracy=0.9))
    {'valid_loss': 0.25, 'valid_accuracy': 0.9}

    On a test set:

    >>> import torch
    >>> from fsm_train import Supervised
    >>> model = torch.nn.Linear(2, 1)
    >>> batches = [(torch.zeros(4, 2), torch.ones(4, 1))]
    >>> work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss(), batches)
    >>> sorted(evaluate(work, batches)), sorted(evaluate(work, batches, prefix="holdout"))
    (['test_loss'], ['holdout_loss'])

    Args:
        workload: a `Supervised`.
        data: batches as the training has them: a DataLoader, a list, or an iterator, which is used up.
        prefix: what the names of the metrics begin with, instead of "test", or of "valid" without `data`.

    Raises:
        ValueError: the workload has no validation data, and none are given.
        WorkloadError: `data` are no batches, or none that counts; a validation or another evaluation of the workload
            is under way, or a run in another thread.
        TypeError: the workload is no workload, or the prefix no text.
    """
    check_workload(workload, "evaluate({})" if data is None else "evaluate({}, data)")
    _check_prefix(prefix)
    if data is None and not workload.has_valid:
        raise ValueError(
            "there is no validation data: give the workload some (valid=…), or other data here: evaluate(work, data)"
        )
    shared = workload.across_ranks()
    state = attrs.evolve(start(workload, epochs=0), phase=Phase.VALID_BEGIN, workload=None)
    with (
        evaluation_under_way(workload) as beside_a_run,
        shared.set_aside() if beside_a_run else nullcontext(),
        shared.evaluate_on(data),
    ):
        metrics = _measured(shared, state, given=data is not None)
    return FrozenMap(_renamed(metrics, prefix or ("valid" if data is None else "test")))


def _measured(workload: Workload, state: State, *, given: bool) -> Mapping[str, float]:
    """The metrics of one validation; `given` is whether its data are not the workload's own."""
    batch, counted = 0, False
    try:
        workload.open_valid(state)
        while (counts := workload.fetch_valid()) is not None:
            if counts:
                workload.evaluate()
                counted = True
            batch += 1
        if given and not counted:
            raise WorkloadError(
                "data gave no batch that counts: it is empty, an iterator that was used before, or samples= counts 0 "
                "for each of its batches. Write evaluate(work, DataLoader(…)), or a list of batches"
            )
        return workload.measure_valid(state)
    except BaseException as error:
        workload.abandon(state)
        if given:
            error.add_note(f"Raised in evaluate(work, data), in batch {batch} of data, counted from 0.")
        raise


def _renamed(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The metrics of a validation, whose names begin with the prefix."""
    return {
        f"{prefix}_{name.removeprefix(OF_VALID)}" if name.startswith(OF_VALID) else name: value
        for name, value in metrics.items()
    }


def _check_prefix(prefix: object) -> None:
    if prefix is None:
        return
    write = 'give a name, evaluate(work, data, prefix="holdout") for holdout_loss'
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is {kind_of(prefix)}: {write}")
    if not prefix:
        raise ValueError(f"prefix is empty: {write}")
    if not is_text(prefix):
        raise ValueError(f"prefix={prefix!r}: {NO_TEXT}")
