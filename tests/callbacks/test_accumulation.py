"""Accumulation: k small batches are the one batch that is their union."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    CallbackError,
    ConflictError,
    Flag,
    Phase,
    Scripted,
    State,
    Supervised,
    Transition,
    WeighLoss,
    on,
    run,
    start,
)
from fsm_train.callbacks import accumulate, during
from fsm_train.testing import at, drive, simulate
from tests.diabetes_training import looking
from tests.models import diabetes


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"every": 1}, 10),
        ({"every": 4}, 3),
        ({"every": 4, "drop_last": True}, 2),
        ({"every": 5, "drop_last": True}, 2),
        ({"every": 20}, 1),
        ({"every": 20, "drop_last": True}, 0),
    ],
)
def test_steps_per_epoch(settings: dict[str, Any], steps: int) -> None:
    """A step for each window, and for the leftover one unless it is dropped; windows do not cross epochs."""
    one = simulate([accumulate(**settings)], batches=10, epochs=1)
    two = simulate([accumulate(**settings)], batches=10, epochs=2)

    assert (one.step, two.step, two.pending) == (steps, 2 * steps, 0)


def test_window_may_depend_on_the_epoch() -> None:
    """{0: 1, 2: 4} takes a step each batch for two epochs, then one every four."""
    steps: list[int] = []

    @on(Phase.EPOCH_END)
    def look(state: State) -> None:
        steps.append(state.step)

    simulate([accumulate({0: 1, 2: 4}), look], batches=8, epochs=4)

    assert steps == [8, 16, 18, 20]


def test_shares_are_in_proportion_to_the_first_batch() -> None:
    """Each loss counts by its size; the shares of equal batches add up to one."""
    sizes = [32, 32, 16, 64]
    states = [at(Phase.LOSS_END, pending=i, batch_size=size) for i, size in enumerate(sizes)]

    shares = [answer.commands for answer in drive(accumulate(4), states)]

    assert shares == [(WeighLoss(0.25),), (WeighLoss(0.25),), (WeighLoss(0.125),), (WeighLoss(0.5),)]


def test_step_is_held_back_until_the_window_is_full() -> None:
    """Step and zero are skipped until the window is full."""
    answers = drive(accumulate(3), [at(Phase.LOSS_END, pending=pending) for pending in (0, 1, 2)])

    assert [answer.flags for answer in answers] == [Flag.SKIP_STEP | Flag.SKIP_ZERO] * 2 + [Flag.NONE]


@pytest.mark.unmeasured
@pytest.mark.parametrize("sizes", [(4, 4, 4), (7, 3, 2), (5, 6), (1,)])
def test_gradient_is_that_of_the_union(sizes: tuple[int, ...]) -> None:
    """Full windows, unequal sizes and leftovers give the gradient of the one batch, to rounding."""
    inputs, target = (tensor[: sum(sizes)] for tensor in diabetes().tensors)

    assert _step(_cut(inputs, target, sizes), [accumulate(3)]).allclose(_step([(inputs, target)], []), rtol=1e-5)


def test_skipped_batch_leaves_the_window_open() -> None:
    """A batch that is skipped inside a window counts neither as a batch nor in the weights."""
    inputs, target = (tensor[:9] for tensor in diabetes().tensors)

    @on(Phase.LOSS_END)
    def skip_second(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BACKWARD) if state.batch == 1 else None

    four = _cut(inputs, target, (2, 3, 3, 1))
    union = torch.cat([x for x, _ in (four[0], *four[2:])]), torch.cat([y for _, y in (four[0], *four[2:])])

    assert _step(four, [accumulate(3), skip_second]).allclose(_step([union], []), rtol=1e-5)


def test_skipped_first_batch_is_no_measure_of_the_others() -> None:
    """The window begins with the first batch that takes part in it."""
    inputs, target = (tensor[:6] for tensor in diabetes().tensors)

    @on(Phase.BATCH_BEGIN)
    def skip_first(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BATCH) if state.batch == 0 else None

    three = _cut(inputs, target, (1, 2, 3))
    assert _step(three, [accumulate(2), skip_first]).allclose(_step([(inputs[1:], target[1:])], []), rtol=1e-5)


def test_batches_can_be_weighted_by_another_fact() -> None:
    """A loss that is a mean over tokens is weighted by their number, which a sensor measures."""
    inputs, target = (tensor[:8] for tensor in diabetes().tensors)
    mask = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).bool()

    def loss_fn(output: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(output[target[1]], target[0][target[1]])

    def batch(rows: slice) -> Any:
        return inputs[rows], (target[rows], mask[rows])

    sensors: dict[str, Callable[[Any], Any]] = {"tokens": lambda work: work.target[1].sum()}
    both = _step([batch(slice(4)), batch(slice(4, 8))], [accumulate(2, weight="tokens")], loss_fn, sensors=sensors)

    assert both.allclose(_step([batch(slice(8))], [], loss_fn), rtol=1e-5)


def test_gradient_goes_on_after_a_step_that_was_not_taken() -> None:
    """Gradients divided for a step that was skipped at the last moment count as before in the next window."""
    inputs, target = (tensor[:9] for tensor in diabetes().tensors)

    @on(Phase.STEP_BEGIN)
    def not_yet(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.pending == 2 else None

    three = _cut(inputs, target, (2, 3, 4))
    assert _step(three, [accumulate(2), not_yet]).allclose(_step([(inputs, target)], []), rtol=1e-5)


def test_window_that_is_overdue_is_full() -> None:
    """Where a step was not taken at the end of a window, the next batch brings it, and not the end of the epoch."""

    @on(Phase.STEP_BEGIN)
    def not_yet(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.iteration == 1 else None

    look, steps = looking(Phase.STEP_END, lambda state: state.iteration)
    simulate([accumulate(2), not_yet, look], batches=7)

    assert steps == [2, 4, 6]


def test_weight_that_nobody_measures_is_refused() -> None:
    """The weight is a fact like any other."""
    with pytest.raises(ValueError, match="needs the fact 'tokens', which this workload does not measure"):
        simulate([accumulate(2, weight="tokens")])


def test_batch_without_weight_is_left_out() -> None:
    """A weight of zero, even of the first batch, is no division by zero and no batch of the window."""
    work = Scripted(batches=3, tokens=[0.0, 8.0, 4.0], loss=[nan, 1.0, 4.0])
    final = run(start(work, epochs=1), [accumulate(2, weight="tokens")])

    assert work.commands == [WeighLoss(0.5), WeighLoss(0.25)]
    assert (final.step, final.metrics["train_loss"]) == (1, 2.5)


def test_negative_weights_are_refused() -> None:
    """A batch cannot count less than nothing."""
    with pytest.raises(CallbackError, match="share=-1.0: it must be a number from 0"):
        simulate([accumulate(2, weight="tokens")], batches=2, tokens=[1.0, -2.0])


def test_two_windows_at_once_are_refused() -> None:
    """Each would weigh what the other weighed: the gradient would be too small, and nobody would notice."""
    for other in (accumulate(4, name="other"), accumulate(4, player="G", name="other")):
        with pytest.raises(ConflictError, match="'accumulate' and 'other' both hold steps back and weigh the loss"):
            simulate([accumulate(2), other])

    simulate([accumulate(2, player="D"), accumulate(4, player="G", name="other")], players={"D": 1, "G": 1})
    in_turn = [during(accumulate(2), epochs=(0, 1)), during(accumulate(4, name="later"), epochs=(1, 2))]
    assert simulate(in_turn, batches=8, epochs=2).step == 4 + 2


@pytest.mark.parametrize("every", [0, -1, 1.5, {5: 4}, {0: 0}, {-1: 2, 0: 1}])
def test_nonsense_windows_are_refused(every: Any) -> None:
    """A window is a whole number of batches, said from epoch 0 on."""
    with pytest.raises((ValueError, TypeError), match="every"):
        accumulate(every)


def _cut(inputs: torch.Tensor, target: torch.Tensor, sizes: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(inputs.split(sizes), target.split(sizes), strict=True))


def _step(batches: Any, callbacks: Any, loss_fn: Any = None, **settings: Any) -> torch.Tensor:
    """The weights after an epoch over these batches, with plain gradient descent."""
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    work = Supervised(model, optimizer, loss_fn or nn.MSELoss(), batches, **settings)
    assert run(start(work, epochs=1), callbacks).step == 1
    return torch.cat([p.detach().flatten() for p in model.parameters()])
