"""Pairs of the library that other loops get wrong, each on a real model beside the loop by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, State, Transition, on, run, start
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    early_stopping,
    ema,
    freeze,
    mixed_precision,
    mixup,
    restore_best,
    schedule,
    skip_nonfinite,
    stop_after,
    stop_at,
    stop_on_nonfinite,
    validate_every,
)
from fsm_train.testing import simulate
from tests.diabetes_training import Batch, batches, linear, looking, net, sgd, trained, weights_of, workload
from tests.models import accuracy, digits, same_weights

DATA, VALID = batches(8, 8, 8, 6), batches(5, 5, skip=30)


def union(*parts: Batch) -> Batch:
    return torch.cat([inputs for inputs, _ in parts]), torch.cat([target for _, target in parts])


def loop(data: list[Batch], model: nn.Module, max_norm: float | None = None) -> nn.Module:
    optimizer = sgd(model)
    for inputs, target in data:
        nn.functional.mse_loss(model(inputs), target).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_clipping_with_accumulation_with_float16() -> None:
    """Unequal batches and a leftover: clipped once a window, at its true size, as the union is in full precision."""
    parts = batches(8, 5, 7, 3, 6)
    windows = [union(*parts[:2]), union(*parts[2:4]), parts[4]]
    half = mixed_precision("float16", initial_scale=256.0)
    norms, seen = looking(Phase.STEP_BEGIN, lambda state: state.facts["grad_norm"], needs={"grad_norm"})

    ours = trained([half, clip_grad_norm(0.5), accumulate(2), norms], parts)

    assert ours.final.step == len(seen) == 3
    assert all(norm > 0.5 for norm in seen), "each window had something to clip"
    assert ours.weights.allclose(weights_of(loop(windows, linear(), 0.5)), rtol=2e-2, atol=2e-3)


def test_schedules_with_steps_held_back() -> None:
    """The rates that were used by steps that were taken are f(0), f(1), …; without a gap."""
    look, seen = looking(Phase.STEP_END, lambda s: (s.facts["stepped"], s.hyper["lr"]), needs={"stepped"})
    callbacks = [mixed_precision("float16", initial_scale=2.0**24), schedule(lr=lambda step: 1 / (1 + step)), look]
    trained(callbacks, DATA, epochs=4)

    used = [rate for stepped, rate in seen if stepped]
    assert 0 < len(used) < 16
    assert used == pytest.approx([0.05 / (1 + i) for i in range(len(used))])


def test_skipping_with_float16() -> None:
    """An overflow that a callback skips lowers the scale, and nothing is unscaled twice; accumulation included."""
    half = mixed_precision("float16", initial_scale=2.0**24)
    ours = trained([half, skip_nonfinite(limit=99), accumulate(2), clip_grad_norm(1.0)], DATA, epochs=20)

    scaler = ours.work.carried_over.scaler
    assert scaler is not None
    assert 0 < ours.final.step < 40
    assert scaler["scale"] == 2.0 ** (24 - (40 - ours.final.step))
    assert ours.weights.isfinite().all()


@pytest.mark.parametrize("backwards", [False, True])
def test_early_stopping_with_restore_best(backwards: bool) -> None:
    """It stops after its patience, and has the weights of the best epoch; in whatever order they are listed."""
    work = workload(DATA, model=net(), valid=VALID)
    look, seen = looking(Phase.EPOCH_END, lambda s: (s.metrics["valid_loss"], weights_of(work.model)))
    both = [early_stopping(patience=2, mode="max"), restore_best(mode="max")]
    final = run(start(work, epochs=20), [*(reversed(both) if backwards else both), look])

    values = [value for value, _ in seen]
    best = values.index(max(values))
    assert final.epoch == best + 3
    assert weights_of(work.model).equal(seen[best][1])
    assert final.reason.startswith("early_stopping: valid_loss has not improved on ")


def test_stopping_in_the_best_epoch_keeps_that_one() -> None:
    """What the epoch that stops has brought is kept first: it is not one epoch stale."""
    work = workload(DATA, model=net(), valid=VALID)
    look, seen = looking(Phase.EPOCH_END, lambda s: weights_of(work.model))
    run(start(work, epochs=20), [stop_at("valid_loss", 1e9), restore_best(), look])

    assert len(seen) == 1
    assert weights_of(work.model).equal(seen[0])


def test_checkpoint_of_the_epoch_that_stops_knows_of_it() -> None:
    """It is written after everybody has decided, in any order of the list."""
    saved: list[State] = []

    class Saving(type(workload())):  # type: ignore[misc]
        def carry_out(self, command: Any, state: State) -> None:
            saved.append(state)

        def carries(self, kind: Any) -> bool:
            return True

    model = linear()
    work = Saving(model, sgd(model), nn.MSELoss(), DATA, VALID)
    run(start(work, epochs=9), [checkpoint("runs"), early_stopping(patience=1, mode="max")])

    assert saved[-1].memory["early_stopping"].bad == 1  # type: ignore[attr-defined]
    assert Flag.STOP_TRAINING in saved[-1].flags


def test_ema_with_validation_in_the_middle_of_an_epoch() -> None:
    """Each validation is of the average of that moment, and the training continues as if there had been none."""
    often = trained([ema(0.5), validate_every(steps=2)], DATA, model=net(), valid=VALID, epochs=2)
    model = net()
    average = torch.optim.swa_utils.AveragedModel(
        model,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5),  # type: ignore[no-untyped-call]
    )
    optimizer = sgd(model)
    look, seen = looking(Phase.VALID_END, lambda state: state.metrics["valid_loss"])
    trained([ema(0.5), validate_every(steps=2), look], DATA, model=net(), valid=VALID, epochs=2)
    expected = []
    for i, (inputs, target) in enumerate(DATA * 2):
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if i % 2:
            average.module.eval()
            with torch.no_grad():
                expected.append(nn.functional.mse_loss(average(VALID[0][0]), VALID[0][1]).item())
                expected[-1] = (expected[-1] + nn.functional.mse_loss(average(VALID[1][0]), VALID[1][1]).item()) / 2

    assert same_weights(often.model, average.module)
    assert seen == pytest.approx(expected, rel=1e-6)


def test_mixup_with_metrics() -> None:
    """The train accuracy is of each sample's own label, and the train loss is what was minimised."""
    data = [tuple(tensor[:32] for tensor in digits(64).tensors)]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((output.detach(), target))
        return nn.functional.cross_entropy(output, target)

    model = nn.Linear(64, 10)
    ours = trained([mixup()], data, model=model, loss_fn=loss_fn, metrics={"accuracy": accuracy})

    (output, own), (_, partners) = seen
    weight = ours.final.metrics["train_loss"]
    own_loss, partners_loss = (nn.functional.cross_entropy(output, target).item() for target in (own, partners))
    assert own.equal(data[0][1])
    assert not partners.equal(own)
    assert min(own_loss, partners_loss) <= weight <= max(own_loss, partners_loss)
    assert ours.final.metrics["train_accuracy"] == accuracy(output, own).item()


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4, 5])
def test_leftover_windows_with_max_steps(max_steps: int) -> None:
    """The training ends with that step, of a full window or of a leftover one; no batch is used for nothing."""
    parts = batches(8, 8, 8, 6, 4)
    windows = [union(*parts[:2]), union(*parts[2:4]), parts[4]] * 2
    by_plan = trained([accumulate(2)], parts, epochs=None, max_steps=max_steps)
    by_callback = trained([accumulate(2), stop_after(steps=max_steps)], parts, epochs=9)

    for ours in (by_plan, by_callback):
        assert (ours.final.step, ours.final.pending) == (max_steps, 0)
        assert ours.final.iteration == sum([2, 2, 1, 2, 2][:max_steps])
        assert ours.weights.allclose(weights_of(loop(windows[:max_steps], linear())), rtol=1e-4, atol=1e-6)


def test_two_stoppers_in_one_phase() -> None:
    """Both are named, with their reasons; neither overrules the other."""
    stoppers = [stop_at("valid_loss", 2.0), early_stopping("valid_acc", patience=1, mode="max")]
    expected = (
        "early_stopping: valid_acc has not improved on 0.5 for 1 validation; "
        "stop_at: valid_loss is 1.5, the target was 2.0"
    )

    for order in (stoppers, stoppers[::-1]):
        final = simulate(order, valid_loss=[3.0, 1.5, 1.0], valid_acc=[0.5, 0.5, 0.5])
        assert (final.epoch, final.reason) == (2, expected)


def test_stopping_and_suspending_at_once() -> None:
    """It is suspended; once taken up again it stops, and the reasons stand in the last state."""
    callbacks = [stop_after(steps=2)]

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND, reason="time is up") if state.step == 2 else None

    suspended = simulate([*callbacks, leave], batches=9)
    final = run(suspended, callbacks)

    assert (suspended.phase, final.phase, final.step) == (Phase.SUSPENDED, Phase.DONE, 2)
    assert "stop_after: 2 steps were taken" in final.reason


def test_freeze_with_weight_decay() -> None:
    """Neither decay nor momentum nor AdamW's moments move what is frozen; what is unfrozen begins afresh."""
    for make in (torch.optim.AdamW, torch.optim.SGD):

        def optimizer(model: nn.Module, make: Any = make) -> torch.optim.Optimizer:
            settings = {"momentum": 0.9} if make is torch.optim.SGD else {}
            return make(model.parameters(), lr=0.01, weight_decay=0.5, **settings)  # type: ignore[no-any-return]

        model = net()
        watch, seen = looking(Phase.EPOCH_END, lambda s, m=model: m[0].weight.detach().clone())
        trained([freeze("0.*", until_epoch=2), watch], DATA, model=model, optimizer=optimizer, epochs=3)

        assert seen[0].equal(net()[0].weight)
        assert seen[1].equal(seen[0])
        assert not seen[2].equal(seen[1])


def test_stopping_on_nonfinite_with_an_open_window() -> None:
    """The batches before the bad one are stepped as a leftover window, the bad one is not."""
    parts = batches(8, 8, 8)
    bad = [parts[0], (parts[1][0], parts[1][1] * float("inf")), parts[2]]
    ours = trained([stop_on_nonfinite(), accumulate(3)], bad)

    assert (ours.final.step, ours.final.iteration) == (1, 2)
    assert ours.weights.allclose(weights_of(loop(parts[:1], linear())), rtol=1e-5)
