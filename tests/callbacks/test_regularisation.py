"""Penalties and noise, beside loops that do the same by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Phase, Plan, Scripted, WeighLoss, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, grad_noise, weight_penalty
from fsm_train.core.commands import AddPenalty
from fsm_train.testing import at, drive
from tests.diabetes_training import Batch, batches, net, plain, sgd, trained, weights_of

DATA = batches(8, 8, 8, 6)


# ------------------------------------------------------------------------------------------ as data


def test_penalty_is_a_command_before_the_loss_is_weighed() -> None:
    """So that under accumulation the penalty of a window is that of one batch."""
    work = Scripted(batches=1)
    run(start(work, epochs=1), [accumulate(2), weight_penalty(l1=0.1, l2=0.2)])

    assert work.commands == [AddPenalty(0.1, 0.2), WeighLoss(0.5)]


def test_noise_is_drawn_from_the_state() -> None:
    """The same state draws the same seed; another step, another plan and another name another one."""
    noise = grad_noise(0.1)
    states = [
        at(Phase.STEP_BEGIN, step=3),
        at(Phase.STEP_BEGIN, step=3),
        at(Phase.STEP_BEGIN, step=4),
        at(Phase.STEP_BEGIN, step=3, plan=Plan(epochs=10, seed=1)),
    ]
    seeds = [answer.commands[0].seed for answer in drive(noise, states)]  # type: ignore[attr-defined]
    other = drive(grad_noise(0.1, name="more"), states[:1])[0].commands[0]

    assert seeds[0] == seeds[1]
    assert len({*seeds, other.seed}) == 4  # type: ignore[attr-defined]


def test_noise_decays() -> None:
    """The variance falls with the number of steps, to the power of `decay`."""
    states = [at(Phase.STEP_BEGIN, step=step) for step in (0, 1, 15)]

    def stds(**settings: float) -> list[float]:
        return [answer.commands[0].std for answer in drive(grad_noise(0.4, **settings), states)]  # type: ignore[attr-defined,arg-type]

    assert stds() == [0.4] * 3
    assert stds(decay=1.0) == pytest.approx([0.4, 0.4 / math.sqrt(2), 0.1])
    assert stds(decay=0.55)[2] == pytest.approx(0.4 / 16**0.275)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: weight_penalty(), "weight_penalty without a weight"),
        (lambda: weight_penalty(l1=-0.1), "l1=-0.1: it must be a number from 0"),
        (lambda: weight_penalty(l2=math.nan), "l2=nan"),
        (lambda: grad_noise(0.0), "std=0.0: it is a positive number"),
        (lambda: grad_noise(math.inf), "std=inf"),
        (lambda: grad_noise(0.1, decay=-1), "decay=-1: it is a number from 0"),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """What they were made with, and under which name."""
    small, rough = weight_penalty(l1=0.1, name="small"), grad_noise(0.1)

    assert (small.name, small.params) == ("small", {"l1": 0.1, "l2": 0.0})
    assert (rough.name, rough.params) == ("grad_noise", {"std": 0.1, "decay": 0.0})


# ------------------------------------------------------------------------------------------ by hand


def penalised(data: list[Batch], l1: float, l2: float) -> nn.Module:
    model = net()
    optimizer = sgd(model)
    for inputs, target in data:
        loss = nn.functional.mse_loss(model(inputs), target)
        loss = loss + l1 * sum(p.abs().sum() for p in model.parameters())
        loss = loss + l2 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize(("l1", "l2"), [(0.1, 0.0), (0.0, 0.1), (0.01, 0.1)])
def test_penalty_is_added_to_the_loss(l1: float, l2: float) -> None:
    """The weights are those of a loop that adds it by hand; the measured loss stays without it."""
    ours = trained([weight_penalty(l1=l1, l2=l2)], DATA, model=net())

    assert ours.weights.allclose(weights_of(penalised(DATA, l1, l2)), rtol=1e-5, atol=1e-7)
    first = trained([weight_penalty(l1=l1, l2=l2)], DATA[:1], model=net()).final.metrics
    assert first == trained([], DATA[:1], model=net()).final.metrics


def test_penalty_of_a_window_is_that_of_its_union() -> None:
    """Two batches accumulated are penalised once."""
    data = batches(5, 3)
    union = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    model = nn.Linear(10, 1)
    start_at = {name: value.clone() for name, value in model.state_dict().items()}
    ours = trained([weight_penalty(l2=0.5), accumulate(2)], data, model=model)
    other = nn.Linear(10, 1)
    other.load_state_dict(start_at)

    assert ours.weights.allclose(trained([weight_penalty(l2=0.5)], union, model=other).weights, rtol=1e-5)


class _Many(nn.Module):
    """A model with a gradient of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(200, 200))
        self.b = nn.Parameter(torch.zeros(100))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 0 * (self.w.sum() + self.b.sum())


def noise(*callbacks: Any, seed: int | None = 0, epochs: int = 1) -> torch.Tensor:
    """What plain descent takes for a gradient."""
    one = [(torch.zeros(1, 1), torch.zeros(1))]
    settings: Any = {"model": _Many(), "optimizer": plain, "loss_fn": lambda output, target: output}
    return -trained(callbacks, one, seed=seed, epochs=epochs, **settings).weights


def test_noise_has_its_standard_deviation() -> None:
    """Of forty thousand elements, within a percent or two; no two tensors have the same."""
    drawn = noise(grad_noise(0.3))

    assert drawn.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs(drawn.mean().item()) < 0.01
    assert not torch.equal(drawn[:100], drawn[-100:])


def test_noise_is_the_same_each_time() -> None:
    """It depends on the plan's seed alone, and other generators are not touched by it."""
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)

    assert torch.equal(noise(grad_noise(0.3), seed=None), noise(grad_noise(0.3), seed=None))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(noise(grad_noise(0.3), seed=1), noise(grad_noise(0.3), seed=2))


def test_each_step_has_its_own_noise() -> None:
    """Two steps with the same noise would be twice as far as one, and not the root of two."""
    assert noise(grad_noise(0.3), epochs=2).std().item() == pytest.approx(0.3 * math.sqrt(2), rel=0.02)
    assert noise(grad_noise(0.3), grad_noise(0.3, name="b")).std().item() == pytest.approx(0.3 * 2**0.5, rel=0.02)


def test_noise_comes_after_clipping() -> None:
    """In any order of the list, it is not clipped."""
    assert torch.equal(noise(grad_noise(0.3), clip_grad_norm(0.1)), noise(grad_noise(0.3)))
    assert torch.equal(noise(clip_grad_norm(0.1), grad_noise(0.3)), noise(grad_noise(0.3)))
