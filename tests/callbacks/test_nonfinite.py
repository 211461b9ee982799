"""Losses and gradients that are not finite: no weight is touched by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, Transition
from fsm_train.callbacks import accumulate, skip_nonfinite, stop_on_nonfinite
from fsm_train.testing import at, drive, simulate
from tests.diabetes_training import Batch, batches, linear, sgd, trained, weights_of

NAN, INF = math.nan, math.inf
SKIP_LOSS, SKIP_STEP, STOP = Flag.SKIP_BACKWARD, Flag.SKIP_STEP, Flag.STOP_TRAINING


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("phase", "fact", "skip"), [(Phase.LOSS_END, "loss", SKIP_LOSS), (Phase.STEP_BEGIN, "grad_norm", SKIP_STEP)]
)
def test_first_one_stops(phase: Phase, fact: str, skip: Flag, value: float) -> None:
    """It stops with the evidence, and leaves out what would have touched the weights."""
    answer = stop_on_nonfinite()(at(phase, epoch=2, batch=5, **{fact: value}))

    assert answer == Transition(flags=STOP | skip, reason=f"the {fact} is {value} in batch 5 of epoch 2")


@pytest.mark.parametrize("callback", [stop_on_nonfinite(), skip_nonfinite()])
def test_finite_values_are_nothing_to_speak_of(callback: Any) -> None:
    """Not even a memory is written."""
    states = [at(Phase.LOSS_END, loss=1e30), at(Phase.STEP_BEGIN, grad_norm=0.0)]

    assert drive(callback, states) == [Transition(), Transition()]


def test_a_stopped_training_took_the_steps_before() -> None:
    """The step of the bad batch is not taken, and the reason stands in the last state."""
    final = simulate([stop_on_nonfinite()], batches=4, loss=[1.0, INF, 1.0, 1.0])

    assert (final.step, final.iteration) == (1, 2)
    assert final.reason == "stop_on_nonfinite: the loss is inf in batch 1 of epoch 0"


def test_looking_can_be_made_rarer() -> None:
    """With every=2 the odd batches are not looked at."""
    assert simulate([stop_on_nonfinite(every=2)], batches=4, loss=[1.0, NAN, 1.0, 1.0]).step == 4
    assert simulate([stop_on_nonfinite(every=2)], batches=4, loss=[1.0, 1.0, NAN, 1.0]).step == 2


@pytest.mark.parametrize("make", [stop_on_nonfinite, skip_nonfinite])
def test_gradients_can_be_left_to_the_scaler(make: Callable[..., Any]) -> None:
    """With gradients=False the norm is neither looked at nor measured."""
    assert make(gradients=False).at == (Phase.LOSS_END,)
    assert make(gradients=False).needs == {"loss"}


def test_bad_batches_in_a_row_are_left_out_up_to_the_limit() -> None:
    """The last of `limit` stops the training; a good one in between begins the count anew."""
    final = simulate([skip_nonfinite(limit=3)], batches=9, loss=[NAN, NAN, 1.0, NAN, INF, NAN, 1.0, 1.0, 1.0])

    assert (final.iteration, final.step) == (6, 1)
    assert final.reason == "skip_nonfinite: 3 in a row were not finite: the loss is nan in batch 5 of epoch 0"


def test_a_good_loss_does_not_excuse_bad_gradients() -> None:
    """Gradients that are never finite stop the training although each loss is."""
    final = simulate([skip_nonfinite(limit=3)], batches=9, loss=1.0, grad_norm=INF)

    assert (final.iteration, final.step) == (3, 0)
    assert "the grad_norm is inf" in final.reason


def test_losses_and_gradients_are_counted_apart() -> None:
    """A row of one is broken by a good value of the same kind alone."""
    states = [
        at(Phase.LOSS_END, loss=NAN),
        at(Phase.STEP_BEGIN, grad_norm=INF),
        at(Phase.LOSS_END, loss=1.0),
        at(Phase.STEP_BEGIN, grad_norm=INF),
    ]

    assert [answer.flags for answer in drive(skip_nonfinite(limit=2), states)] == [
        SKIP_LOSS,
        SKIP_STEP,
        Flag.NONE,
        SKIP_STEP | STOP,
    ]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: stop_on_nonfinite(every=0), "every=0: it is a whole number from 1"),
        (lambda: skip_nonfinite(limit=0), "limit=0: it is a whole number from 1"),
        (lambda: skip_nonfinite(limit=True), "limit=True"),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """What they were made with, and under which name."""
    stop, skip = stop_on_nonfinite(every=3, name="halt"), skip_nonfinite(limit=4)

    assert (stop.name, stop.params) == ("halt", {"gradients": True, "every": 3})
    assert (skip.name, skip.params) == ("skip_nonfinite", {"limit": 4, "gradients": True})


# ------------------------------------------------------------------------------------ on a real model


def poisoned(data: list[Batch], *which: int) -> list[Batch]:
    """The batches, with targets of these that make the loss infinite."""
    return [(inputs, target * INF if i in which else target) for i, (inputs, target) in enumerate(data)]


def loop(data: list[Batch], loss_fn: Any = nn.functional.mse_loss) -> torch.Tensor:
    model = linear()
    optimizer = sgd(model)
    for inputs, target in data:
        loss_fn(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(model)


def test_bad_batch_is_as_if_it_had_never_been() -> None:
    """The weights are bit for bit those of a loop without that batch."""
    data = batches(8, 8, 8, 6)

    assert trained([skip_nonfinite()], poisoned(data, 1)).weights.equal(loop([data[0], *data[2:]]))
    assert trained([stop_on_nonfinite()], poisoned(data, 2)).weights.equal(loop(data[:2]))


def test_bad_batch_leaves_a_window_open() -> None:
    """In windows of two, the batch after a bad one takes its place."""
    data = batches(8, 8, 8)
    union = [(torch.cat([data[0][0], data[2][0]]), torch.cat([data[0][1], data[2][1]]))]

    ours = trained([accumulate(2), skip_nonfinite()], poisoned(data, 1))

    assert ours.final.step == 1
    assert ours.weights.allclose(loop(union), rtol=1e-5)


class _BadGradient(torch.autograd.Function):
    """Nothing, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * NAN


def _bad_where_it_is_small(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss is finite in each batch; its gradient is not in those of eight."""
    loss = nn.functional.mse_loss(output, target)
    return _BadGradient.apply(loss) if len(target) == 8 else loss  # type: ignore[no-any-return,no-untyped-call]


def test_bad_gradient_takes_no_step() -> None:
    """The step is left out and its gradient dropped: momentum is not moved by it either."""
    data = batches(9, 8, 7, 6)
    good = [data[0], *data[2:]]

    ours = trained([skip_nonfinite()], data, loss_fn=_bad_where_it_is_small)

    assert ours.final.step == 3
    assert ours.weights.equal(loop(good))
    assert trained([stop_on_nonfinite()], data, loss_fn=_bad_where_it_is_small).weights.equal(loop(data[:1]))


def test_bad_gradient_drops_its_window() -> None:
    """Under accumulation the whole window is lost, as its sum is not finite, and the next one begins afresh."""
    data = batches(9, 8, 7, 6)
    union = [(torch.cat([data[2][0], data[3][0]]), torch.cat([data[2][1], data[3][1]]))]

    ours = trained([skip_nonfinite(), accumulate(2)], data, loss_fn=_bad_where_it_is_small)

    assert ours.final.step == 1
    assert ours.weights.allclose(loop(union), rtol=1e-5)
