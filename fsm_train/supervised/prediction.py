"""What a model says about data: its outputs, joined.

Rule of this file: which part of a batch are the inputs is told by its form, as in training, or by the caller. It is
never told by trying.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..core.arguments import check_workload, kind_of, takes_by_name
from ..core.errors import WorkloadError
from ..core.under_way import evaluation_under_way
from ..data.batches import apply_split, in_words, map_tensors, to_device
from ..data.loaders import start_pass
from ..data.sharded import share_of
from .gathered_outputs import PredictedBatch, gathered, known_order
from .in_step import in_step
from .joining import join
from .other_data import check_batches
from .snapshot import ValidationGuard
from .workload import Supervised

_CPU = torch.device("cpu")
_NOTHING = object()  # the outputs for no batch


@takes_by_name
def predict(workload: Supervised, data: Iterable[Any], *, inputs_only: bool = False) -> Any:
    """Give the outputs of the model for all batches: in eval mode, without gradients, on the CPU.

    Nothing of the training changes, as with `evaluate`: modes and random generators are put back, and in a loop over
    `iterate` the batch under way is left alone. The model is called as in training: through `forward=`, on its device,
    in the precision of the run under way. The weights are those that it has now.

    Of a loader of `sharded`, the outputs are those of the whole dataset, in its order, on each rank. Of other data they
    are those for the batches that this rank is given.

    What are the inputs of a batch? With `split=`, what that returns first. Otherwise a tuple or list of two is
    (inputs, target), as in training, and the target is left out; a tuple or list of one is its part; a tensor, a
    mapping or another object is inputs alone. Anything else is refused. `inputs_only=True` says that each batch is
    inputs alone, also with `split=`, and also a tuple of two, which is then passed by position.

    >>> from fsm_train import Supervised
    >>> model = torch.nn.Linear(2, 3)
    >>> batches = [(torch.zeros(4, 2), torch.ones(4, 3)), (torch.zeros(1, 2), torch.ones(1, 3))]
    >>> work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss(), batches)
    >>> predict(work, batches).shape
    torch.Size([5, 3])
    >>> predict(work, [torch.zeros(7, 2)]).shape
    torch.Size([7, 3])

    Args:
        workload: a `Supervised`.
        data: batches: a DataLoader, a list, or an iterator, which is used up.
        inputs_only: whether the batches are inputs alone, whatever their form.

    Returns:
        Tensors of the shape (samples, …), joined along their first dimension. Outputs that are tuples or mappings of
        one form are joined part by part. A part that cannot be joined is a list with an item for each batch: tensors
        that differ behind the first dimension or in their dtype, scalars, lists, other objects.

    Raises:
        WorkloadError: the data are no batches, or none; a batch is neither a pair nor inputs; a validation or an
            evaluation of the workload is under way, or a run in another thread.
        PeerError: another rank failed, with a part of a loader of `sharded`.
        TypeError: the workload is no `Supervised`.
    """
    check_workload(workload, "predict({}, data)")
    if not isinstance(workload, Supervised):
        raise TypeError(f"predict takes a Supervised, which has a model, but was given {kind_of(workload)}")
    if not isinstance(inputs_only, bool):
        raise TypeError(f"inputs_only is {kind_of(inputs_only)}: write predict(work, data, inputs_only=True)")
    check_batches(data, "predict(work, {})", "inputs")
    is_share = share_of(data) is not None
    shared = workload.across_ranks() if is_share else workload
    with evaluation_under_way(workload), workload.set_aside(), shared.evaluate_on(data):
        guard = ValidationGuard.of(workload.modules, workload.loader_generators())
        try:
            found = _of_all_ranks(workload, inputs_only) if is_share else _of_this_rank(workload, inputs_only)
        finally:
            workload._evaluation = None
            guard.put_back()
    if found is _NOTHING:
        raise WorkloadError(
            "data gave no batch: it is empty, or an iterator that was used before. Write predict(work, DataLoader(…)), "
            "or a list of batches"
        )
    return found


def _of_this_rank(work: Supervised, inputs_only: bool) -> Any:
    (evaluation,) = work.evaluations
    outputs = _outputs(work, start_pass(evaluation.loader), inputs_only)
    return join(outputs) if outputs else _NOTHING


def _of_all_ranks(work: Supervised, inputs_only: bool) -> Any:
    (evaluation,) = work.evaluations
    with known_order(evaluation.loader) as order:
        batches = start_pass(evaluation.loader)
    outputs = _outputs(work, batches, inputs_only)
    parts = [PredictedBatch(*each) for each in zip(order, outputs, strict=True)]
    return gathered(work, parts, nothing=_NOTHING)


def _outputs(work: Supervised, batches: Iterator[Any], inputs_only: bool) -> list[Any]:
    """The output for each of these batches, on the CPU."""
    (work._evaluation,) = work.evaluations  # it is no batch of the training
    for module in work.modules.values():
        module.eval()
    outputs: list[Any] = []
    try:
        for batch in in_step(work, batches):
            inputs, target = _parts(work, batch, inputs_only)
            work.inputs, work.target = to_device(inputs, work.device), to_device(target, work.device)
            work.mix = None
            with torch.set_grad_enabled(work.grad_in_valid):
                work.forward()
            outputs.append(_on_cpu(work.output))
    except Exception as error:
        error.add_note(f"Raised in predict(work, data), in batch {len(outputs)} of data, counted from 0.")
        raise
    return outputs


def _parts(work: Supervised, batch: Any, inputs_only: bool) -> tuple[Any, Any]:
    """The inputs and the target of a batch; None for a target that it has not."""
    if work._split is not None and not inputs_only:
        return _split(work, batch)
    in_row = isinstance(batch, (tuple, list))
    if in_row and len(batch) == 1:  # of a TensorDataset(inputs)
        return batch[0], None
    if inputs_only or not in_row:
        return batch, None
    if len(batch) == 2:
        return batch[0], batch[1]
    raise WorkloadError(
        f"a batch of data is {in_words(batch)}: is one of them a target? Write predict(work, data, "
        "inputs_only=True) if all are inputs, passed by position; otherwise give pairs (inputs, target), as in "
        "training, or Supervised(…, split=…)"
    )


def _split(work: Supervised, batch: Any) -> tuple[Any, Any]:
    assert work._split is not None
    try:
        return apply_split(batch, work._split)
    except Exception as error:
        raise WorkloadError(
            f"split=, which makes (inputs, target) of a batch, failed on a batch of data, {in_words(batch)}: "
            f"{type(error).__name__}: {error}. If the batches are inputs alone, write predict(work, data, "
            "inputs_only=True)"
        ) from error


def _on_cpu(output: Any) -> Any:
    """The output with copies of its tensors: a model may write the next output into the same memory."""
    if isinstance(output, (torch.Tensor, tuple, list, Mapping)):
        return map_tensors(output, lambda tensor: tensor.detach().to(_CPU, copy=True))
    return to_device(output, _CPU)
