"""Schedules at work: which rate a step really uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import CallbackError, Phase, State, Supervised, on, run, start
from fsm_train.callbacks import accumulate, schedule
from fsm_train.schedules import absolute, cosine, exponential, warmup
from fsm_train.testing import simulate
from tests.models import diabetes


def rates(callbacks: list[Any], phase: Phase = Phase.STEP_END, key: str = "lr", **settings: Any) -> list[Any]:
    """The hyper-parameter at each visit of the phase."""
    seen: list[Any] = []

    @on(phase)
    def look(state: State) -> None:
        seen.append(state.hyper[key])

    simulate([*callbacks, look], **settings)
    return seen


def halved(progress: int) -> float:
    return 0.5**progress


def test_step_i_uses_the_rate_of_i() -> None:
    """By step: the step with index i uses f(i) times the optimizer's own rate."""
    assert rates([schedule(lr=halved)], batches=4, hyper={"lr": 8.0}) == [8.0, 4.0, 2.0, 1.0]


def test_accumulation_does_not_hurry_the_schedule() -> None:
    """Under accumulation progress is in steps, not in batches."""
    assert rates([schedule(lr=halved), accumulate(2)], batches=5, hyper={"lr": 8.0}) == [8.0, 4.0, 2.0]


def test_step_that_was_held_back_is_no_progress() -> None:
    """The rate waits with the step counter when a gradient scaler holds a step back."""
    assert rates([schedule(lr=halved)], batches=4, hyper={"lr": 8.0}, stepped=[1, 0, 0, 1]) == [8.0, 4.0, 4.0, 4.0]


def test_by_iteration_and_by_epoch() -> None:
    """By iteration it is set before each mini-batch, by epoch at its beginning."""
    settings: dict[str, Any] = {"batches": 2, "epochs": 2, "hyper": {"lr": 8.0}}

    assert rates([schedule(lr=halved, by="iteration")], Phase.LOSS_END, **settings) == [8.0, 4.0, 2.0, 1.0]
    assert rates([schedule(lr=halved, by="epoch")], Phase.LOSS_END, **settings) == [8.0, 8.0, 4.0, 4.0]


def test_groups_keep_their_proportion() -> None:
    """A factor applies to each parameter group's own value; an absolute value is the same for all."""
    hyper = {"lr": (8.0, 1.0), "momentum": (0.9, 0.8)}
    both = schedule(lr=halved, momentum=absolute(lambda progress: 0.5))

    assert rates([both], batches=2, hyper=hyper) == [(8.0, 1.0), (4.0, 0.5)]
    assert rates([both], batches=2, hyper=hyper, key="momentum") == [(0.5, 0.5)] * 2


def test_own_value_is_kept_over_a_suspension() -> None:
    """A resumed schedule takes the optimizer's own value from its memory, not the scaled one."""
    final = simulate([schedule(lr=halved)], batches=3, hyper={"lr": 8.0})
    assert final.hyper["lr"] == 2.0
    assert final.memory["schedule"] == (("lr", 8.0),)

    again = run(start_again(final), [schedule(lr=halved)])
    assert again.hyper["lr"] == 0.25


def start_again(final: State) -> State:
    from fsm_train import extend

    return extend(final, epochs=1)


def test_it_is_torchs_scheduler() -> None:
    """Weights with a schedule by step equal those of a loop with torch's own schedulers, to rounding."""
    models = [_linear(), _linear()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    loader = DataLoader(diabetes(), 50)
    theirs = torch.optim.lr_scheduler.SequentialLR(
        optimizers[0],
        [
            torch.optim.lr_scheduler.LinearLR(optimizers[0], 0.1, total_iters=5),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[0], 10),
        ],
        milestones=[5],
    )
    for inputs, target in loader:
        nn.functional.mse_loss(models[0](inputs), target).backward()
        optimizers[0].step()
        theirs.step()
        optimizers[0].zero_grad()

    ours = schedule(lr=warmup(5, start=0.1).then(cosine(10)))
    run(start(Supervised(models[1], optimizers[1], nn.MSELoss(), loader), epochs=1), [ours])

    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(10, 1)


def test_unknown_hyper_parameter_is_refused_at_setup() -> None:
    """Before the first batch, with those that there are."""
    with pytest.raises(CallbackError, match="at setup .* no hyper-parameter 'momentum' to schedule: .* has lr"):
        simulate([schedule(momentum=halved)])


def test_schedule_that_is_not_finite_is_refused() -> None:
    """A rate of nan is an error that names the schedule and the step."""
    with pytest.raises(CallbackError, match="the schedule of lr, .* is nan at 0"):
        simulate([schedule(lr=lambda progress: float("nan"))])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: schedule(lr=cosine(10), by="batch"), "by='batch': 'step', 'iteration', 'epoch' or 'training'"),  # type: ignore[arg-type]
        (lambda: schedule(), "schedule what"),
        (lambda: schedule(lr=0.1), r"lr=0.1 is no function of progress; .* absolute\(0.1\)"),  # type: ignore[arg-type]
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """The schedules stand in the params under the names of what they set."""
    callback = schedule(lr=exponential(0.5), name="decay")

    assert (callback.name, dict(callback.params)) == (
        "decay",
        {"by": "step", "optimizer": None, "lr": exponential(0.5)},
    )
