"""Clipping: as data, and against torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import ClipGradNorm, Phase, Scripted, Transition, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, clip_grad_value, skip_nonfinite
from fsm_train.core.commands import ClipGradValue
from fsm_train.testing import at, drive
from tests.diabetes_training import batches, linear, looking, plain, sgd, trained, weights_of


def test_clipping_is_a_command_before_the_step() -> None:
    """The answer is one command, compared as a value; nothing is executed."""
    assert drive(clip_grad_norm(0.5), [at(Phase.STEP_BEGIN)]) == [Transition(commands=(ClipGradNorm(0.5, 2.0),))]


def test_a_command_reads_as_one_writes_it() -> None:
    """A pattern is shown where there is one."""
    assert repr(ClipGradNorm(1.0)) == "ClipGradNorm(max_norm=1.0, norm_type=2.0)"
    assert repr(ClipGradNorm(1.0, pattern="h.*")) == "ClipGradNorm(max_norm=1.0, norm_type=2.0, pattern='h.*')"
    assert drive(clip_grad_norm(1.0, pattern="h.*"), [at(Phase.STEP_BEGIN)]) == [
        Transition(commands=(ClipGradNorm(1.0, pattern="h.*"),))
    ]


def test_clipping_is_once_a_step_with_accumulation() -> None:
    """Ten batches in windows of four are clipped three times: once each, the leftover included."""
    work = Scripted(batches=10)
    run(start(work, epochs=1), [clip_grad_norm(0.5), accumulate(4)])

    assert work.commands.count(ClipGradNorm(0.5)) == 3


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_norms_are_refused(max_norm: float) -> None:
    """A largest norm is a positive number."""
    with pytest.raises(ValueError, match="max_norm=.*: it must be a positive number"):
        clip_grad_norm(max_norm)


def test_clipping_by_value_is_a_command_before_the_step() -> None:
    """One command, compared as a value."""
    assert drive(clip_grad_value(0.5), [at(Phase.STEP_BEGIN)]) == [Transition(commands=(ClipGradValue(0.5),))]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_values_are_refused(value: float) -> None:
    """A largest element is a positive number."""
    with pytest.raises(ValueError, match="value=.*: it must be a positive number"):
        clip_grad_value(value)


@pytest.mark.parametrize("norm_type", [0.0, -2.0, float("nan")])
def test_nonsense_kinds_of_norm_are_refused(norm_type: float) -> None:
    """The p of a p-norm is positive, or infinite."""
    with pytest.raises(ValueError, match="norm_type=.*: it is a positive number, or math.inf"):
        clip_grad_norm(1.0, norm_type=norm_type)


def test_settings_are_recorded() -> None:
    """What they were made with, and under which name."""
    norm, value = clip_grad_norm(1.0, name="short"), clip_grad_value(0.5)

    assert (norm.name, norm.params) == ("short", {"max_norm": 1.0, "norm_type": 2.0, "pattern": None})
    assert (value.name, value.params) == ("clip_grad_value", {"value": 0.5})


# ------------------------------------------------------------------------------------ on a real model


def by_hand(clip: Callable[[list[nn.Parameter]], object]) -> torch.Tensor:
    """The weights after the plain loop with this clipping."""
    model = linear()
    optimizer = sgd(model)
    for inputs, target in batches(8, 8, 8, 6):
        nn.functional.mse_loss(model(inputs), target).backward()
        clip(list(model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(model)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_clipping_by_norm_is_torchs_own(norm_type: float) -> None:
    """For each kind of norm the weights are bit for bit those of torch's clip_grad_norm_."""
    ours = trained([clip_grad_norm(0.5, norm_type=norm_type)])

    assert ours.weights.equal(by_hand(lambda p: nn.utils.clip_grad_norm_(p, 0.5, norm_type)))


def test_clipping_by_value_is_torchs_own() -> None:
    """The weights are bit for bit those of torch's clip_grad_value_."""
    assert trained([clip_grad_value(0.1)]).weights.equal(by_hand(lambda p: nn.utils.clip_grad_value_(p, 0.1)))


def test_both_kinds_of_clipping_work_together_in_any_order() -> None:
    """By value first, then by the norm that is left; the order of the list changes nothing."""

    def both(parameters: list[nn.Parameter]) -> None:
        nn.utils.clip_grad_value_(parameters, 0.1)
        nn.utils.clip_grad_norm_(parameters, 0.05)

    expected = by_hand(both)
    value, norm = clip_grad_value(0.1), clip_grad_norm(0.05)

    assert trained([value, norm]).weights.equal(expected)
    assert trained([norm, value]).weights.equal(expected)


def test_two_clippings_by_norm_are_one_after_the_other() -> None:
    """The second sees what the first has left, and not the norm before it."""

    def twice(parameters: list[nn.Parameter]) -> None:
        nn.utils.clip_grad_norm_(parameters, 0.5)
        nn.utils.clip_grad_norm_(parameters, 0.4)

    two = [clip_grad_norm(0.5), clip_grad_norm(0.4, name="tighter")]
    assert trained(two).weights.equal(by_hand(twice))


class _Given(nn.Module):
    """A model whose gradient is what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        return (gradient * self.w).sum()


def step_with(*gradients: list[float], callbacks: list[Any]) -> tuple[list[float], list[float]]:
    """The step that plain descent takes with these gradients, and the norms that were measured before."""
    look, norms = looking(Phase.STEP_BEGIN, lambda state: state.facts["grad_norm"], needs={"grad_norm"})
    data = [(torch.tensor([gradient]), torch.zeros(1)) for gradient in gradients]
    ours = trained([*callbacks, look], data, model=_Given(), optimizer=plain, loss_fn=lambda output, target: output)
    return (-ours.weights).tolist(), norms


def test_norm_before_clipping_is_the_fact() -> None:
    """[3, 4] is scaled to norm 1, and 5 is what was measured."""
    step, norms = step_with([3.0, 4.0], callbacks=[clip_grad_norm(1.0)])

    assert step == pytest.approx([0.6, 0.8], rel=1e-6)
    assert norms == [5.0]


def test_clipping_is_of_the_whole_window() -> None:
    """[1, 0] and [1, 2] in one window give [1, 1], clipped once, and not the mean of two clipped ones."""
    step, norms = step_with([1.0, 0.0], [1.0, 2.0], callbacks=[accumulate(2), clip_grad_norm(1.0)])

    assert step == pytest.approx([2**-0.5] * 2, rel=1e-5)
    assert norms == pytest.approx([2**0.5])


def test_infinite_gradient_is_said_by_the_fact() -> None:
    """No clipping can mend it: the norm is infinite, for whoever wants to leave the step out."""
    step, norms = step_with([math.inf, 1.0], callbacks=[clip_grad_norm(1.0)])

    assert math.isnan(step[0])
    assert norms == [math.inf]
    assert step_with([math.inf, 1.0], callbacks=[clip_grad_norm(1.0), skip_nonfinite()])[0] == [0.0, 0.0]


def test_gradients_that_the_optimizer_does_not_step_count_for_nothing() -> None:
    """The norm is of what is stepped: gradients that nobody zeroes would pile up in it."""
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 1))
    look, norms = looking(Phase.STEP_BEGIN, lambda state: state.facts["grad_norm"], needs={"grad_norm"})

    def head_only(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(model.parameters())[2:], lr=0.0)

    trained([look], batches(8), model=model, optimizer=head_only, epochs=3)

    assert norms[0] == norms[2]
