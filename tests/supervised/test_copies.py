"""Deep copies of a workload, and of a state with the workload that it trained."""

from __future__ import annotations

import copy

import torch

from fsm_train import State, Supervised, extend, run, start
from fsm_train.callbacks import accumulate, early_stopping, ema
from tests.diabetes_training import batches, net, weights_of, workload

CALLBACKS = [accumulate(2), ema(0.5, validate=False), early_stopping(patience=9)]


def work_of(state: State) -> Supervised:
    assert isinstance(state.workload, Supervised)
    return state.workload


def test_copy_of_a_workload_is_trained_alike() -> None:
    """With an optimizer of its own parameters, and without a trace in the original."""
    original = workload(model=net(), valid=batches(8, 6))
    before = weights_of(original.model)
    first = run(start(copy.deepcopy(original), epochs=3, seed=0), CALLBACKS)
    assert torch.equal(weights_of(original.model), before)

    second = run(start(original, epochs=3, seed=0), CALLBACKS)
    assert first == second
    assert torch.equal(weights_of(work_of(first).model), weights_of(original.model))


def test_copy_of_a_finished_training_can_be_extended() -> None:
    """To try something out, and to go on with the original as if that had not been."""
    final = run(start(workload(model=net(), valid=batches(8, 6)), epochs=2, seed=0), CALLBACKS)
    kept, before = copy.deepcopy(final), weights_of(work_of(final).model)
    assert kept == final

    tried = run(extend(kept, epochs=2), CALLBACKS)
    assert torch.equal(weights_of(work_of(final).model), before)
    assert run(extend(final, epochs=2), CALLBACKS) == tried
    assert torch.equal(weights_of(work_of(final).model), weights_of(work_of(tried).model))
