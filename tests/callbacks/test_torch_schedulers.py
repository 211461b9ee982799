"""Torch's own schedulers, beside the same ones by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.optim import lr_scheduler

from fsm_train import ConflictError, Flag, Phase, State, Transition, WorkloadError, extend, on, run, start
from fsm_train.callbacks import accumulate, mixed_precision, torch_scheduler
from fsm_train.core.commands import StepScheduler, UseScheduler
from fsm_train.testing import at
from tests.diabetes_training import batches, looking, net, sgd, trained, workload
from tests.models import same_weights

DATA = batches(8, 8, 8, 6)


def exponential(optimizer: Any) -> Any:
    return lr_scheduler.ExponentialLR(optimizer, 0.5)


def warmed_up(optimizer: Any) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))


# ------------------------------------------------------------------------------------------ as data


def test_it_is_made_at_setup_and_stepped_with_each_step() -> None:
    """A step that was held back is none."""
    callback = torch_scheduler(exponential)

    assert callback(at(Phase.SETUP)) == Transition(commands=(UseScheduler("torch_scheduler", exponential),))
    assert callback(at(Phase.STEP_END, stepped=1.0)) == Transition(commands=(StepScheduler("torch_scheduler"),))
    assert callback(at(Phase.STEP_END, stepped=0.0)) is None


def test_by_epoch_it_is_stepped_with_each_epoch() -> None:
    """With the metric, if it takes one; an epoch without a validation is no check."""
    plain, fed = (
        torch_scheduler(exponential, by="epoch", name="a"),
        torch_scheduler(exponential, by="epoch", monitor="valid_loss"),
    )

    assert plain.at == (Phase.SETUP, Phase.EPOCH_END)
    assert plain(at(Phase.EPOCH_END)) == Transition(commands=(StepScheduler("a"),))
    assert fed(at(Phase.VALID_END, valid_loss=2.0)) == Transition(commands=(StepScheduler("torch_scheduler", 2.0),))
    assert fed(at(Phase.VALID_END)) is None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: torch_scheduler(3), "make=3: give a function that makes a scheduler of the optimizer"),  # type: ignore[arg-type]
        (lambda: torch_scheduler(exponential, by="batch"), "by='batch': 'step' or 'epoch'"),  # type: ignore[arg-type]
        (lambda: torch_scheduler(exponential, monitor="valid_loss"), "monitor='valid_loss': a step measures no metric"),
        (lambda: torch_scheduler(exponential, by="epoch", monitor=""), "monitor='': name a metric"),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """What it was made with, and under which name."""
    callback = torch_scheduler(exponential, name="halve")

    assert (callback.name, callback.params) == ("halve", {"make": exponential, "by": "step", "monitor": None})


# ------------------------------------------------------------------------------------------ by hand


def loop(make: Any, epochs: int, by: str = "step", every: int = 1) -> tuple[nn.Module, list[float]]:
    """The loop with the scheduler by hand, and the rate of each step."""
    model = net()
    optimizer = sgd(model)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs):
        for i, (inputs, target) in enumerate(DATA):
            nn.functional.mse_loss(model(inputs), target).backward()
            if (i + 1) % every == 0:
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                optimizer.zero_grad()
                if by == "step":
                    scheduler.step()
        if by == "epoch":
            scheduler.step()
    return model, rates


@pytest.mark.parametrize("make", [exponential, warmed_up])
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_it_is_the_scheduler_by_hand(make: Any, by: Any) -> None:
    """Weights to the last bit, and the rates are seen in the state by everyone else."""
    look, rates = looking(Phase.STEP_BEGIN, lambda state: state.hyper["lr"])
    model, expected = loop(make, 3, by)

    ours = trained([torch_scheduler(make, by=by), look], DATA, model=net(), epochs=3)

    assert rates == expected
    assert ours.final.hyper["lr"] == ours.work.optimizer.param_groups[0]["lr"]
    assert same_weights(ours.model, model)


def test_first_rate_is_in_the_state_from_the_beginning() -> None:
    """Making a scheduler sets a rate; the state at TRAIN_BEGIN has it."""
    look, rates = looking(Phase.TRAIN_BEGIN, lambda state: state.hyper["lr"])
    trained([torch_scheduler(warmed_up), look], DATA, model=net())

    assert rates == [0.05 / 4]


def test_accumulation_does_not_hurry_it() -> None:
    """It is stepped once a window."""
    look, rates = looking(Phase.STEP_BEGIN, lambda state: state.hyper["lr"])
    trained([torch_scheduler(exponential), accumulate(2), look], DATA, model=net(), epochs=2)

    assert rates == [0.05 * 0.5**i for i in range(4)]


def test_steps_held_back_do_not_hurry_it() -> None:
    """The rate waits, and torch has no occasion to warn that the scheduler came before the optimizer."""
    look, seen = looking(Phase.STEP_END, lambda s: (s.facts["stepped"], s.hyper["lr"]), needs={"stepped"})
    trained([torch_scheduler(exponential), mixed_precision("float16", initial_scale=2.0**24), look], DATA, epochs=4)

    taken = [int(stepped) for stepped, _ in seen]
    assert 0 in taken
    assert 1 in taken
    assert [rate for _, rate in seen] == [0.05 * 0.5 ** sum(taken[:i]) for i in range(16)]


def test_plateau_is_given_its_metric() -> None:
    """ReduceLROnPlateau sees the metric of each epoch that has one."""

    @on(Phase.EPOCH_BEGIN)
    def every_second_epoch(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID) if state.epoch % 2 == 0 else None

    def reduce(optimizer: Any) -> Any:
        return lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9, threshold_mode="abs")

    callbacks = [torch_scheduler(reduce, by="epoch", monitor="valid_loss"), every_second_epoch]
    ours = trained(callbacks, DATA, valid=DATA[:1], epochs=6)

    assert ours.final.hyper["lr"] == pytest.approx(0.05 * 0.01)


def test_it_goes_on_over_suspensions_and_extensions() -> None:
    """A training in three calls of run is the one in a single call."""
    work = workload(DATA, model=net())

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 2 else None

    suspended = run(start(work, epochs=1), [torch_scheduler(warmed_up), leave])
    final = run(suspended, [torch_scheduler(warmed_up)])
    run(extend(final, epochs=1), [torch_scheduler(warmed_up)])

    assert same_weights(work.model, loop(warmed_up, 2)[0])


def test_two_schedulers_are_chained_by_torch() -> None:
    """Two callbacks are refused, since their order would count; one ChainedScheduler multiplies the factors."""
    with pytest.raises(ConflictError, match="'torch_scheduler' and 'again' both set hyper-parameters by a command"):
        trained([torch_scheduler(exponential), torch_scheduler(exponential, name="again")], DATA)

    def chained(optimizer: Any) -> Any:
        return lr_scheduler.ChainedScheduler([exponential(optimizer), exponential(optimizer)])

    assert trained([torch_scheduler(chained)], DATA).final.hyper["lr"] == pytest.approx(0.05 * 0.25**4)


def test_function_that_makes_no_scheduler_is_refused() -> None:
    """Before the first batch: such as one that only changes the optimizer, or forgets its return."""
    with pytest.raises(WorkloadError, match="make of 'torch_scheduler' returned None: let it return the scheduler"):
        trained([torch_scheduler(lambda optimizer: None)], DATA)
