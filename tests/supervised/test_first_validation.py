"""A validation before the first step: asked for at TRAIN_BEGIN, and a training as ever afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, extend, on, replay, restore, run, start
from fsm_train.callbacks import ema, validate_every
from fsm_train.core.commands import SaveCheckpoint
from tests.models import Noisy, digits, network, same_weights, sgd, shuffled

VALID = [tuple(tensor[:64] for tensor in digits(320).tensors), tuple(tensor[64:96] for tensor in digits(320).tensors)]


def _work() -> Supervised:
    model = network()
    return Supervised(model, sgd(model), nn.CrossEntropyLoss(), shuffled(Noisy(digits(96))), VALID)


def _noted(noted: list[tuple[int, float]]) -> Callback[Any]:
    @on(Phase.VALID_END)
    def notes(state: State) -> None:
        noted.append((state.step, state.metrics["valid_loss"]))

    return notes


def test_it_measures_the_weights_that_the_training_begins_with() -> None:
    """Its loss is that of the model as it was given, the others are as without it, and so are the weights."""
    ours, theirs = _work(), _work()
    before = copy.deepcopy(ours.model).eval()
    noted: list[tuple[int, float]] = []
    others: list[tuple[int, float]] = []

    final = run(start(ours, epochs=2, seed=0), [validate_every(steps=2, first=True), _noted(noted)])
    expected = run(start(theirs, epochs=2, seed=0), [validate_every(steps=2), _noted(others)])

    with torch.no_grad():
        losses = [(nn.functional.cross_entropy(before(inputs), target).item(), len(target)) for inputs, target in VALID]
    assert noted[0] == (0, pytest.approx(sum(loss * size for loss, size in losses) / 96, rel=1e-6))
    assert noted[1:] == others
    assert same_weights(ours.model, theirs.model)
    assert final.history == expected.history


def test_its_metrics_are_not_those_of_the_epoch() -> None:
    """An epoch that skips its validation has no valid_loss, although there was one before it."""

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_END)
    def skips(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID) if state.phase is Phase.BATCH_END else None

    final = run(start(_work(), epochs=1, seed=0), [validate_every(steps=100, first=True), skips])

    assert final.history[0].keys() == {"train_loss"}


def test_training_may_end_with_it() -> None:
    """STOP_TRAINING in or after it ends the training without an epoch: no step is taken."""
    for phase in (Phase.VALID_BATCH_END, Phase.VALID_END):

        @on(phase)
        def stops(state: State) -> Transition:
            return Transition(flags=Flag.STOP_TRAINING, reason="good from the start")

        work = _work()
        before = copy.deepcopy(work.model)
        final = run(start(work, epochs=2, seed=0), [validate_every(steps=1, first=True), stops])

        assert (final.phase, final.epoch, final.step, final.history) == (Phase.DONE, 0, 0, ())
        assert final.metrics.keys() == {"valid_loss"}
        assert same_weights(before, work.model)


@pytest.mark.parametrize("phase", [Phase.VALID_BATCH_END, Phase.VALID_END])
def test_suspended_in_it_and_restored_it_is_the_same_training(phase: Phase, tmp_path: Path) -> None:
    """Left in or after the first validation, and gone on with from a file: weights and metrics bit for bit."""

    @on(phase, Phase.SUSPEND, memory=0)
    def leaves(state: State, times: int) -> Transition | None:
        if state.phase is Phase.SUSPEND:
            return Transition(commands=(SaveCheckpoint(str(tmp_path), "here"),))
        return None if times else Transition(flags=Flag.SUSPEND, memory=1)

    callbacks = [validate_every(steps=2, first=True), ema(0.9)]
    undisturbed, work = _work(), _work()
    expected = run(start(undisturbed, epochs=2, seed=0), callbacks)
    suspended = run(start(work, epochs=2, seed=0), [*callbacks, leaves])
    torch.manual_seed(99)
    work = _work()
    final = run(restore(tmp_path / "here", work), [*callbacks, leaves])

    assert (suspended.phase, suspended.iteration) == (Phase.SUSPENDED, 0)
    assert final.history == expected.history
    assert same_weights(work.model, undisturbed.model)


def test_extended_training_may_validate_first_too() -> None:
    """VALIDATE at TRAIN_BEGIN of an extended training opens no epoch; the next one trains as without it."""

    @on(Phase.TRAIN_BEGIN)
    def asks(state: State) -> Transition:
        return Transition(flags=Flag.VALIDATE)

    noted: list[tuple[int, float]] = []
    ours, theirs = _work(), _work()
    first = run(start(ours, epochs=1, seed=0))
    final = run(extend(first, epochs=1), [asks, _noted(noted), validate_every(steps=100, first=True)])
    expected = run(extend(run(start(theirs, epochs=1, seed=0)), epochs=1))

    assert [step for step, _ in noted] == [3, 6]
    assert noted[0][1] == first.metrics["valid_loss"]
    assert final.history == expected.history
    assert same_weights(ours.model, theirs.model)


def test_its_log_replays(tmp_path: Path) -> None:
    """The log of such a training, and of one that was extended, makes the same decisions again."""
    log = tmp_path / "run.jsonl"
    callbacks = [validate_every(steps=2, first=True)]
    run(extend(run(start(_work(), epochs=1, seed=0), callbacks, log=log), epochs=1), callbacks, log=log)

    assert replay(log).divergence is None
