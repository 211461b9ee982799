"""Data that are not the training's: batches to evaluate or to predict.

Rule of this file: nothing of the training is different afterwards. An error shows the call to write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..core.arguments import is_iterable
from ..core.errors import WorkloadError
from ..data.batches import in_words, is_empty, is_map_style
from ..data.loaders import own_pass
from ..data.sources import Sources
from .evaluations import AS_IN_TRAINING, BoundEvaluation, Evaluation
from .meters import Meters, check_metrics
from .training import Training


@contextlib.contextmanager
def evaluate_on(work: Training, data: Any) -> Iterator[None]:
    """Let these be the validation data until this context ends; None for the training's own.

    What a layer of the training data has in common with them, such as a sampler that counts, is put back.

    Raises:
        WorkloadError: the data are no batches.
    """
    carried, before = work.carried_over, work.evaluations
    measured = carried.measured_with, carried.measured_by
    sources = None if data is None else Sources.now(work.train)
    try:
        if data is not None:
            work.evaluations = (_bound(work, data),)
        yield
    finally:
        work.evaluations = before
        if sources is not None:
            sources.put_back(work.train)
        carried.measured_with, carried.measured_by = measured


def _bound(work: Training, data: Any) -> BoundEvaluation:
    """The data, or the evaluation of them, as the one evaluation of a validation."""
    given = isinstance(data, Evaluation)
    record: Evaluation = data if given else Evaluation(data)
    loader = own_pass(work.train, check_batches(record.data, "evaluate(work, {})", "inputs, target"), "data")
    assert loader is not None
    metrics = work._metrics if record.metrics is AS_IN_TRAINING else check_metrics(record.metrics)
    meters = Meters("valid", metrics, work.device, work._shared())
    return BoundEvaluation("", "valid", "data", loader, record, record.weights if given else None, meters)


def check_batches(data: Any, call: str, columns: str) -> Iterable[Any]:
    """The data, if batches come from it. It is not iterated: that may draw random numbers.

    Args:
        data: what was given.
        call: how the call is written, with {} where the data stand.
        columns: the tensors of a batch, as they are written there.

    Raises:
        WorkloadError: with the call to write.
    """
    if isinstance(data, Evaluation):
        write = call.format("evaluation.data")
        raise WorkloadError(f"data is an Evaluation, which says what is measured: write {write} for its data")
    found, loader = in_words(data), call.format("DataLoader(data, batch_size=32)")
    rows = f"DataLoader(TensorDataset({columns}), batch_size=32)"
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, torch.Tensor) for part in data)
    if pair or isinstance(data, torch.Tensor) or (hasattr(data, "shape") and hasattr(data, "dtype")):
        of_two = " of two tensors" * pair
        raise WorkloadError(
            f"data is {'a tuple' if pair else found}{of_two}, but batches are to come from it: write "
            f"{call.format(rows)}, or a list of one batch: {call.format('[batch]')}"
        )
    if isinstance(data, Mapping):
        raise WorkloadError(
            f"data is {found}, which gives its keys and not batches: write {call.format('data[…]')} for each of "
            f"several loaders, or {call.format('[data]')} if it is one batch"
        )
    if is_map_style(data):
        raise WorkloadError(f"data is a dataset ({type(data).__name__}), which gives samples: write {loader}")
    if not is_iterable(data) or isinstance(data, (str, bytes, nn.Module)):
        raise WorkloadError(f"data is {found}, but batches are to come from it: write {loader}, or a list of batches")
    if is_empty(data):
        raise WorkloadError(
            f"data has no batches: is the dataset empty, or smaller than one batch with drop_last=True? Write {loader}"
        )
    return data
